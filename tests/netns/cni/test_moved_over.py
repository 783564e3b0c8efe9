"""A node that moves over in place: pods that Debian's reference plugin wired are removed by ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import reference
from nodenet.link import netns

pytestmark = pytest.mark.kernel

REFERENCE = Path("/usr/lib/cni")
MASQ = {"type": "bridge", "ipMasq": True}


def add(world: Any, container: str, pod: str, conf: bytes) -> Any:
    """ADD by the reference's bridge and host-local; the result. Debian 12's speaks versions up to 1.0.0."""
    if not (REFERENCE / "bridge").exists():
        pytest.skip("the reference's bridge is not installed (Debian's containernetworking-plugins)")
    environment = world.env("ADD", container, pod, "IgnoreUnknown=1")
    environment |= {"CNI_PATH": str(REFERENCE), "PATH": "/usr/sbin:/usr/bin"}
    done = netns.run(world.node, [REFERENCE / "bridge"], env=environment, input=conf, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def nat(world: Any) -> list[str]:
    """What iptables has in table nat, both families."""
    lines: list[str] = []
    for program in ("iptables-save", "ip6tables-save"):
        done = netns.run(world.node, [program, "-t", "nat"], capture_output=True, text=True, check=True)
        lines += [line for line in done.stdout.splitlines() if "CNI-" in line]
    return lines


@pytest.mark.parametrize("told", ["prevResult", "no prevResult", "the executable", "GC"])
def test_its_masquerading_goes_with_the_pod(world: Any, told: str) -> None:
    conf = world.conf(cniVersion="1.0.0", **MASQ)
    results = {name: add(world, name, world.pod(), conf) for name in ("c1", "c2")}
    chains = {name: reference.masquerade_chain("net", name) for name in results}
    for chain in chains.values():
        # Per family: the chain, two rules in it and the one that leads there.
        assert len([line for line in nat(world) if chain in line]) == 8
    for number, name in enumerate(results):
        match told:
            case "prevResult":
                reply = world.call("DEL", name, str(world.pods[number]), world.conf(**MASQ, prevResult=results[name]))
            case "no prevResult":
                reply = world.call("DEL", name, "", world.conf(**MASQ))
            case "the executable":
                reply = world.execute("DEL", name, "", world.conf(**MASQ))
                assert (reply.returncode, reply.stdout, reply.stderr) == (0, b"", b"")
            case _:
                valid = [{"containerID": other, "ifname": "eth0"} for other in list(results)[number + 1 :]]
                reply = world.call("GC", "", conf=world.conf(**MASQ, **{"cni.dev/valid-attachments": valid}))
        assert reply.stdout == b""
        assert not [line for line in nat(world) if chains[name] in line]
        # The other one's is left alone.
        assert len(nat(world)) == 8 - 8 * number
    assert world.call("DEL", "c1", "", world.conf(**MASQ)).status == 0


def test_without_iptables_it_is_told(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    conf = world.conf(cniVersion="1.0.0", **MASQ)
    result, pod = add(world, "c1", world.pod(), conf), str(world.pods[0])
    monkeypatch.setattr(reference, "_PROGRAMS", {4: "nntest-none", 6: "nntest-none"})
    assert world.call("DEL", "c1", pod, world.conf(**MASQ, prevResult=result)).status == 0
    assert caplog.text.count("may be left in table nat: nntest-none is not installed") == 2
    assert reference.masquerade_chain("net", "c1") in caplog.text
    assert len(nat(world)) == 8


def test_pods_of_our_own_call_no_program(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(reference, "run", lambda *words, **keys: called.append(words))
    pod, conf = world.pod(), world.conf(ipMasq=True)
    assert world.call("ADD", "c1", pod, conf).status == 0
    for _ in range(2):
        assert world.call("DEL", "c1", pod, conf).status == 0
    assert called == []


def test_a_program_that_fails_is_told(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result, pod = add(world, "c1", world.pod(), world.conf(cniVersion="1.0.0", **MASQ)), str(world.pods[0])
    original = reference._call

    def call(program: str, *words: str, stdin: bytes = b"", quiet: bool = False) -> tuple[int, bytes]:
        return (4, b"") if stdin else original(program, *words, quiet=quiet)

    monkeypatch.setattr(reference, "_call", call)
    assert world.call("DEL", "c1", pod, world.conf(**MASQ, prevResult=result)).status == 0
    assert "ip6tables: exit status 4" in caplog.text
    assert len(nat(world)) == 8
