"""The fuzzer of the packet parser, for a few seconds: nothing past policy, and it notices when a fix is gone.

Each run is a process of its own, since it takes namespaces and mounts of its own for good.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from perf.fuzz import build
from perf.fuzz.cases import Maker
from perf.fuzz.model import trespass
from perf.fuzz.mutants import MUTANTS, sources
from perf.fuzz.receiver import Delivery
from perf.fuzz.world import ACK, BY_NAME, REVERSE, SYN, TCP, UDP

ROOT = Path(__file__).parents[2]
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
FRAMES = 8000


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perf.fuzz", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.kernel
def test_nothing_comes_past_policy() -> None:
    result = fuzz("--frames", str(FRAMES), "--seed", "20", "--seconds", "120", "--wire", "4000", "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["findings"] == []
    assert found["frames"] >= FRAMES
    # It proves something only where frames arrive: allowed ones behind the programs, denied ones without them.
    assert found["open_sockets"] >= FRAMES / 10
    assert found["denied_in_open"] >= FRAMES / 10
    assert found["tagged"] >= FRAMES / 50
    assert found["wire"]["findings"] == []
    assert found["wire"]["frames"] >= 4000
    assert found["wire"]["arrived"] >= 20


@pytest.mark.kernel
def test_what_came_past_policy_once_is_held() -> None:
    assert CORPUS
    result = fuzz(*(word for path in CORPUS for word in ("--replay", str(path))))
    assert result.stdout.splitlines() == [f"{path.name}: held" for path in CORPUS], result.stderr
    assert result.returncode == 0


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["hidden-syn", "third-party-error", "unfinished-checksum"])
def test_a_fix_that_is_taken_back_is_found(name: str) -> None:
    result = fuzz("--mutant", name, "--seed", "4", "--seconds", "120")
    assert result.returncode == 0, result.stdout + result.stderr
    assert MUTANTS[name].finds in result.stdout


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_fits_the_sources(name: str) -> None:
    with sources(MUTANTS[name]) as folder:
        assert (folder / "endpoint.bpf.c").exists()


def test_the_same_seed_makes_the_same_cases() -> None:
    first, second, other = (Maker(seed) for seed in (1, 1, 2))
    cases = [first.case() for _ in range(500)]
    assert cases == [second.case() for _ in range(500)]
    assert cases != [other.case() for _ in range(500)]
    assert {case.track for case in cases} == set(BY_NAME)


def test_kinds_of_cases() -> None:
    maker = Maker(3)
    kinds = {case.kind for case in (maker.case() for _ in range(2000))}
    assert kinds >= {"allowed", "allowed in fragments", "denied", "foreign", "lengths", "chains", "fragments", "noise"}
    assert kinds >= {"messages", "link control", "mutated fragments"}
    tags = [case.tag for case in islice(iter(maker.case, None), 500) if case.tag]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("track", BY_NAME)
def test_the_model(version: int, track: str) -> None:
    source = BY_NAME[track].a[version]

    def why(protocol: int, data: bytes, source: bytes = source) -> str:
        return trespass(Delivery(version, protocol, source, data))

    assert why(TCP, build.tcp(4000, 80, SYN)) == ""
    assert why(UDP, build.udp(4000, 53)) == ""
    assert why(TCP, build.tcp(4000, 53, SYN)) == "a denied port (53)"
    assert why(UDP, build.udp(4000, 80)) == "a denied port (80)"
    assert why(TCP, build.tcp(*REVERSE[TCP], ACK)) == ""
    assert why(TCP, build.tcp(*REVERSE[TCP], SYN)).startswith("SYN against the direction of a flow")
    assert why(UDP, build.udp(*REVERSE[UDP])) == ""
    assert why(132, build.udp(4000, 80)) == "protocol 132"
    assert why(TCP, b"\0\x50") == "protocol 6 without ports"
    assert why(TCP, build.tcp(4000, 80, SYN), BY_NAME[track].b[version]) == "a source address that is not A's"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0xFFFF),
        (bytes(4), 0xFFFF),
        (b"\xff\xff", 0),
        (bytes.fromhex("00010002000300040005"), 0xFFF0),
        (b"\1", 0xFEFF),
    ],
)
def test_checksum(data: bytes, value: int) -> None:
    assert build.checksum(data) == value
