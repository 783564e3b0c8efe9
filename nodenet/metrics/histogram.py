"""A histogram whose `observe` costs half a microsecond. That of prometheus_client costs six times as much, and there is
an observation for each change of a Service (docs/decisions/0056-what-people-see-of-services.md)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Buckets:
    """Observations by bucket. One thread may observe while another one reads."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the upper bounds of the buckets, rising, without infinity."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def plus(self, other: Buckets) -> Buckets:
        """Both together. They have the same bounds."""
        found = Buckets(self._bounds)
        found._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        found._sum = self._sum + other._sum
        return found

    def add_to(self, family: HistogramMetricFamily, *labels: str) -> None:
        """Add the present state to a scrape."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        # A copy, so that the buckets and the count agree.
        totals = accumulate(self._counts[:])
        family.add_metric(labels, list(zip(bounds, totals, strict=True)), self._sum)


def exponential(first: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` bounds, each `factor` times the one before it."""
    return tuple(first * factor**power for power in range(count))
