"""Medians with their uncertainty. Pure; the bootstrap draws from a seeded generator, so that a report repeats."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 1000
# A ratio's interval wider than this, or a repeat of direct that wavers by more, supports no statement.
WIDEST = 0.10


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


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: change of the second per one of the first. Raises ValueError with fewer than two places."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two places")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def slope_interval(groups: Sequence[tuple[float, Sequence[float]]]) -> Interval:
    """A bootstrap over the blocks of each place."""
    draw = random.Random(7)
    found = sorted(
        slope([(x, value) for x, values in groups for value in draw.choices(list(values), k=len(values))])
        for _ in range(RESAMPLES)
    )
    return Interval(found[int(RESAMPLES * 0.025)], found[int(RESAMPLES * 0.975) - 1])


def conclusive(ratio: Interval, noise: Interval | None) -> bool:
    """Whether a ratio may be stated. `noise`: direct measured twice, the second against the first."""
    if ratio.width > WIDEST * max(1.0, (ratio.low + ratio.high) / 2):
        return False
    return noise is None or (noise.low >= 1 - WIDEST / 2 and noise.high <= 1 + WIDEST / 2)
