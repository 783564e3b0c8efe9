"""Medians and their uncertainty."""

from __future__ import annotations

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


def test_slope_interval_holds_the_slope() -> None:
    interval = stats.slope_interval([(1, [10, 11, 12]), (10, [28, 29, 30])])
    assert interval.low <= 2 <= interval.high


def test_a_wide_spread_supports_no_statement() -> None:
    assert stats.conclusive(Interval(1.02, 1.05), Interval(0.99, 1.01))
    assert not stats.conclusive(Interval(0.9, 1.2), None)
    assert not stats.conclusive(Interval(1.02, 1.05), Interval(0.9, 1.01))
    assert stats.conclusive(Interval(2.0, 2.15), None)
