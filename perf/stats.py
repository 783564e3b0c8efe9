"""Medians with their uncertainty. Pure; the bootstrap draws from a seeded generator, so that a report repeats."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 1000
# A ratio's interval wider than this, or a repeat of direct that wavers by more, supports no statement.
WIDEST = 0.05
# What an interval is to hold: the true median, in this many of all cases.
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def percentile(samples: Sequence[float], percent: float) -> float:
    """By linear interpolation between the closest ranks. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bootstrap(values: Sequence[float]) -> Interval:
    """Where the median of such values lies in 95 of 100 repetitions; the values are blocks, not single packets."""
    if len(values) < 2:
        return Interval(values[0], values[0])
    draw = random.Random(7)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975) - 1])


class Spread(NamedTuple):
    """An interval, and how sure it is that it holds the true median (0 to 1)."""

    interval: Interval
    confidence: float


def order_interval(values: Sequence[float]) -> Spread:
    """The interval of a median by order statistics, free of any assumption on how the values are distributed.

    The true median is below all of k independent values, or above all, with the probability 2 * 0.5 ** k: from the
    lowest to the highest of six is an interval of 97 %. With nine and more, outer ones are left out as far as 95 %
    remain. With five and fewer the level is below 95 %, and is told.
    """
    ordered, count = sorted(values), len(values)
    outside, cut = 2 * 0.5**count, 0
    while cut + 1 < count // 2 and outside + 2 * math.comb(count, cut + 1) * 0.5**count <= 1 - CONFIDENCE:
        cut += 1
        outside += 2 * math.comb(count, cut) * 0.5**count
    return Spread(Interval(ordered[cut], ordered[-1 - cut]), 1 - outside)


def spread(parts: Sequence[Sequence[float]], blocks: Sequence[float]) -> Spread:
    """Of a median measured anew several times (`parts`: the epochs), each of several blocks.

    The epochs' medians decide: what differs from one set-up to the next is in them, and blocks of one set-up do not
    know of it. With too few epochs the interval is made as wide as the blocks' own uncertainty too.
    """
    if len(parts) < 2:
        return Spread(bootstrap(blocks), CONFIDENCE)
    found = order_interval([statistics.median(part) for part in parts])
    if found.confidence >= CONFIDENCE:
        return found
    inner = bootstrap(blocks)
    wide = Interval(min(found.interval.low, inner.low), max(found.interval.high, inner.high))
    return Spread(wide, found.confidence)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: change of the second per one of the first. Raises ValueError with fewer than two places."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two places")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def conclusive(ratio: Interval, noise: Interval | None) -> bool:
    """Whether a ratio may be stated. `noise`: direct measured twice, the second against the first."""
    if ratio.width > WIDEST * max(1.0, (ratio.low + ratio.high) / 2):
        return False
    return noise is None or (noise.low >= 1 - WIDEST / 2 and noise.high <= 1 + WIDEST / 2)
