"""The soak's verdict. The soak itself takes an hour and runs by hand (make soak)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from perf.soak import world
from perf.soak.figures import Figures, growth, slope
from perf.soak.report import failures, text
from perf.soak.result import Result, Settings

PROBE = Path(__file__).parents[3] / "perf" / "soak" / "probe.py"
SETTINGS = Settings(minutes=60, seed=1, batch=10, kill_every=25, outage_every=90, mib_per_hour=4)
FIGURES = Figures(
    at=0,
    node=world.WATCHED,
    pid=7,
    healthy=True,
    rss=80 * 1024,
    anonymous=40 * 1024,
    descriptors=50,
    threads=30,
    maps={},
    namespaces=9,
    nsids=4,
)


def hour(mib: float = 0, descriptors: int = 0, threads: int = 0) -> list[Figures]:
    """One sample a minute; what it grows by within the hour."""
    return [
        replace(
            FIGURES,
            at=minute * 60.0,
            rss=FIGURES.rss + round(mib * 1024 * minute / 60),
            descriptors=FIGURES.descriptors + descriptors * minute // 60,
            threads=FIGURES.threads + threads * minute // 60,
        )
        for minute in range(61)
    ]


def result(figures: list[Figures] | None = None, **counts: int) -> Result:
    entry = {"ok": 1000, "bad": 0, "slow": 0, "notes": []} | counts
    pods = {pod: {"tcp": dict(entry)} for pod, _ in world.clients()}
    return Result(SETTINGS, probes=pods, figures=hour() if figures is None else figures)


def test_an_agent_that_nothing_kills_is_always_there() -> None:
    figures = hour()
    figures[30] = replace(figures[30], pid=0)
    assert failures(result(figures)) == [f"{world.WATCHED}'s agent did not answer 1 times, one after the other"]


@pytest.mark.parametrize(("samples", "holds"), [(3, True), (4, False)])
def test_an_agent_that_is_killed_comes_back(samples: int, holds: bool) -> None:
    other = [replace(entry, node=world.KILLED) for entry in hour()]
    for minute in range(20, 20 + samples):
        other[minute] = replace(other[minute], pid=0)
    assert (failures(result([*hour(), *other])) == []) is holds


def test_a_quiet_hour_holds() -> None:
    assert failures(result()) == []
    assert "nothing got through" in text(result(), [])


def test_one_wrong_answer_fails() -> None:
    found = failures(result(bad=1))
    assert len(found) == len(world.clients())
    assert any("got through" in line for line in found)


def test_a_probe_that_tried_nothing_fails() -> None:
    assert all("nothing was tried" in line for line in failures(result(ok=0)))
    silent = replace(result(), probes={"friend-node1": {}})
    assert failures(silent) == ["friend-node1: no probe reported"]


@pytest.mark.parametrize(("grows", "word"), [("mib", "memory"), ("descriptors", "descriptors"), ("threads", "threads")])
def test_growth_fails(grows: str, word: str) -> None:
    (line,) = failures(result(hour(**{grows: 12})))
    assert word in line


def test_growth_within_bounds_holds() -> None:
    assert failures(result(hour(mib=3, descriptors=3, threads=3))) == []


def test_only_the_agent_that_is_never_killed_is_judged() -> None:
    killed = [replace(entry, node=world.KILLED) for entry in hour(mib=50)]
    assert failures(result(hour() + killed)) == []


def test_too_few_samples_are_not_judged() -> None:
    assert not growth(hour(mib=60)[:11], 0).judged
    assert growth(hour(mib=60)[:20], 0).mib_per_hour == pytest.approx(60, abs=0.5)
    assert growth([], 0).mib_per_hour == 0


def test_slope() -> None:
    assert slope([(0, 1), (1800, 2), (3600, 3)]) == pytest.approx(2)
    assert slope([(5, 1)]) == 0


def test_flips_change_nothing_that_policy_says() -> None:
    policies = [entry for entry in world.start() if entry["kind"] == "NetworkPolicy"]
    ingress = [entry["spec"] for entry in policies if "ingress" in entry["spec"]]
    assert {spec["podSelector"]["matchLabels"]["tier"] for spec in ingress} == set(world.TIERS)
    for spec in ingress:
        roles = {rule["from"][0]["podSelector"]["matchLabels"]["role"] for rule in spec["ingress"]}
        assert roles == set(world.ROLES["friend"])
        assert not roles & set(world.ROLES["stranger"])


def serve(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_the_probe_distinguishes_answers_from_timeouts() -> None:
    with serve(socket.SOCK_DGRAM) as echo, serve(socket.SOCK_DGRAM) as silent:
        port = echo.getsockname()[1]

        def answer() -> None:
            while True:
                data, peer = echo.recvfrom(100)
                if data == b"end":
                    return
                echo.sendto(data, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        targets = [
            ("allowed", "udp", "127.0.0.1", port, True),
            ("through", "udp", "127.0.0.1", port, False),
            ("held", "udp", "127.0.0.1", silent.getsockname()[1], False),
        ]
        command = [sys.executable, "-I", "-S", str(PROBE), json.dumps(targets), "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
            assert probe.stdout is not None
            first = json.loads(probe.stdout.readline())
            os.kill(probe.pid, signal.SIGTERM)
            probe.communicate(timeout=30)
        echo.sendto(b"end", echo.getsockname())
        thread.join()
    assert first["allowed"]["ok"] > 0 == first["allowed"]["bad"]
    assert first["through"]["bad"] > 0 == first["through"]["ok"]
    assert first["held"]["ok"] > 0 == first["held"]["bad"]
