"""A small run of perf/switch.py: policy changes all the time under packets, and agents are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.switch import Goal, run

pytestmark = pytest.mark.kernel


def test_no_packet_meets_a_mixture_of_two_states(bpffs: Path) -> None:
    result = run(bpffs / "switch", Goal(packets=30_000, changes=100, kills=4, limit=120))
    assert result.ok, result.text()
    assert result.packets >= 30_000
    assert result.changes >= 100
    assert result.writes >= 10_000
    assert result.kills == 4
    assert result.during >= 1000
    assert result.packets / 10 < result.dropped < result.packets * 9 / 10


@pytest.mark.parametrize("kills", [0, 1])
def test_changes_that_come_into_force_entry_by_entry_are_found(bpffs: Path, kills: int) -> None:
    result = run(bpffs / "mutant", Goal(packets=20_000, changes=60, kills=kills, limit=120), mutant="not-atomic")
    assert not result.ok
    assert result.wrong or kills
