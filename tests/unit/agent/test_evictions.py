"""When live entries of shared tables are reported as evicted."""

from __future__ import annotations

import logging

import pytest

from nodenet.abi import EntryEnd, FairTable, MetricsEntry, MetricsKey
from nodenet.agent.evictions import LOSSES, RECENT_SECONDS, EvictionWatch


class Counters:
    """nn_metrics with two CPUs."""

    def __init__(self) -> None:
        self.lost = {loss.key: 0 for loss in LOSSES}

    def get(self, key: MetricsKey) -> list[MetricsEntry]:
        return [MetricsEntry(self.lost[key], 0), MetricsEntry(1, 0)]

    def evict(self, table: FairTable, count: int) -> None:
        self.lost[MetricsKey.ended(table, EntryEnd.EVICTED)] += count


def test_evictions_are_problems_for_ten_minutes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    counters = Counters()
    counters.evict(FairTable.CT, 70)  # of an earlier agent
    watch = EvictionWatch(counters, lambda table: "shop/mal (99)" if table is FairTable.CT else "")
    watch.look(1000.0)
    watch.look(1010.0)
    assert watch.problems() == []
    counters.evict(FairTable.CT, 5)
    watch.look(1020.0)
    counters.evict(FairTable.CT, 3)
    counters.evict(FairTable.FRAG, 2)
    watch.look(1030.0)
    connections, fragments = watch.problems()
    assert connections == (
        "in the last 10 minutes 8 live connections were evicted from nn_ct: their next packet is judged again; "
        "most entries: shop/mal (99)"
    )
    assert fragments.startswith("in the last 10 minutes 2 fragmented datagrams were evicted from nn_frag")
    watch.look(1020.0 + RECENT_SECONDS + 5)
    assert watch.problems()[0].startswith("in the last 10 minutes 3 live connections")
    watch.look(1030.0 + RECENT_SECONDS + 5)
    assert watch.problems() == []
    # Once for each table, not at each look.
    assert len(caplog.records) == 2


@pytest.mark.parametrize("table", FairTable)
def test_every_table_has_words(table: FairTable) -> None:
    counters = Counters()
    watch = EvictionWatch(counters)
    watch.look(0.0)
    counters.evict(table, 1)
    watch.look(1.0)
    (sentence,) = watch.problems()
    assert not sentence.endswith("were evicted")
