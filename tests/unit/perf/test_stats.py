"""Medians and their uncertainty."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf import stats
from perf.stats import Interval

NUMBERS = st.floats(1, 1e6)


def test_percentile_between_ranks() -> None:
    assert stats.percentile([1, 2, 3, 4], 50) == 2.5
    assert stats.percentile([4, 1], 99) == pytest.approx(3.97)
    with pytest.raises(ValueError, match="no samples"):
        stats.percentile([], 50)


@given(st.lists(NUMBERS, min_size=2, max_size=20))
def test_bootstrap_stays_among_the_values(values: list[float]) -> None:
    interval = stats.bootstrap(values)
    assert min(values) <= interval.low <= interval.high <= max(values)
    assert interval == stats.bootstrap(values)


def test_one_value_has_no_width() -> None:
    assert stats.bootstrap([3.0]) == Interval(3.0, 3.0)


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_slope_of_a_line(slope: float, start: float) -> None:
    points = [(x, start + slope * x) for x in (0.001, 1.0, 10.0)]
    assert stats.slope(points) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "cut", "confidence"), [(2, 0, 0.5), (5, 0, 0.9375), (6, 0, 0.96875), (8, 0, 0.992), (9, 1, 0.961)]
)
def test_order_statistics_hold_the_median(count: int, cut: int, confidence: float) -> None:
    """Tables of the sign test give the same ranks and levels."""
    found = stats.order_interval([float(value) for value in range(count)])
    assert found.interval == Interval(cut, count - 1 - cut)
    assert found.confidence == pytest.approx(confidence, abs=0.001)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=9), min_size=6, max_size=12))
def test_epochs_decide_the_spread(parts: list[list[float]]) -> None:
    interval, confidence = stats.spread(parts, [value for part in parts for value in part])
    medians = [statistics.median(part) for part in parts]
    assert min(medians) <= interval.low <= statistics.median(medians) <= interval.high <= max(medians)
    assert confidence >= stats.CONFIDENCE


def test_few_epochs_are_as_wide_as_their_blocks_and_say_so() -> None:
    interval, confidence = stats.spread([[1, 5, 9], [1, 5, 9]], [1, 5, 9, 1, 5, 9])
    assert interval.low < 5 < interval.high
    assert confidence == 0.5


def test_a_wide_spread_supports_no_statement() -> None:
    assert stats.conclusive(Interval(1.02, 1.05), Interval(0.99, 1.01))
    assert not stats.conclusive(Interval(0.9, 1.2), None)
    assert not stats.conclusive(Interval(1.02, 1.05), Interval(0.9, 1.01))
    assert stats.conclusive(Interval(2.0, 2.09), None)
