"""Pauses between attempts: doubled, bounded, and from the start again after a success."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nodenet.backoff import Backoff, pause


def test_it_doubles_up_to_the_last_and_starts_again() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.failures == 5
    backoff.reset()
    assert backoff.next() == 0.5


@given(st.floats(1e-4, 10.0), st.floats(1.0, 1000.0), st.lists(st.integers(0, 10**6), min_size=2))
def test_more_failures_never_mean_less_waiting_nor_more_than_the_last(
    first: float, most: float, failures: list[int]
) -> None:
    last = max(first, most)
    pauses = [pause(first, last, number) for number in sorted(failures)]
    assert all(earlier <= later for earlier, later in pairwise(pauses))
    assert all(first <= seconds <= last for seconds in pauses)
    assert pause(first, last, 10**6) == last
