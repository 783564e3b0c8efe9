"""Medians and their uncertainty. Pure. The bootstrap uses a seeded generator, so that its results are reproducible."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 1000
# If the interval of a ratio is wider than this, or repeats of `direct` vary by more, no conclusion is possible.
WIDEST = 0.05
# The probability with which an interval must contain the true median.
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
    """A percentile, by linear interpolation between the closest ranks. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bootstrap(values: Sequence[float]) -> Interval:
    """A 95 % interval of the median, by the bootstrap. The values must be blocks, not single packets."""
    if len(values) < 2:
        return Interval(values[0], values[0])
    draw = random.Random(7)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975) - 1])


class Spread(NamedTuple):
    """An interval, and the probability (0 to 1) that it contains the true median."""

    interval: Interval
    confidence: float


def order_interval(values: Sequence[float]) -> Spread:
    """The interval of a median by order statistics. It needs no assumption about the distribution of the values.

    The true median is below or above all of k independent values with the probability 2 * 0.5 ** k. So the lowest and
    the highest of six values are an interval of 97 %. With nine or more values, outer ones are left out as long as 95 %
    remain. With five or fewer the probability is below 95 %; it is part of the result.
    """
    ordered, count = sorted(values), len(values)
    outside, cut = 2 * 0.5**count, 0
    while cut + 1 < count // 2 and outside + 2 * math.comb(count, cut + 1) * 0.5**count <= 1 - CONFIDENCE:
        cut += 1
        outside += 2 * math.comb(count, cut) * 0.5**count
    return Spread(Interval(ordered[cut], ordered[-1 - cut]), 1 - outside)


def spread(parts: Sequence[Sequence[float]], blocks: Sequence[float]) -> Spread:
    """The spread of a median that was measured in several epochs (`parts`), each with several blocks.

    It is computed from the medians of the epochs: they contain the variation between set-ups, which blocks of one
    set-up do not. With too few epochs, the interval also covers the uncertainty of the blocks.
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
    """The slope by least squares: change of the second coordinate per unit of the first. Raises ValueError with fewer
    than two different first coordinates."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two places")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def conclusive(ratio: Interval, noise: Interval | None) -> bool:
    """True if the ratio allows a conclusion. `noise`: the ratio of the second measurement of `direct` to the first."""
    if ratio.width > WIDEST * max(1.0, (ratio.low + ratio.high) / 2):
        return False
    return noise is None or (noise.low >= 1 - WIDEST / 2 and noise.high <= 1 + WIDEST / 2)
