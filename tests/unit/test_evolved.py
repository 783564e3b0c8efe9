"""Versions of a table: equal to a plain dict after any changes, and no larger than what differs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.evolved import Evolved, changed_keys, evolve

Changes = dict[int, int | None]
CHANGES = st.lists(st.dictionaries(st.integers(0, 12), st.none() | st.integers(0, 3), max_size=6), max_size=12)


def plain(before: dict[int, int], changes: Changes) -> dict[int, int]:
    after: dict[int, Any] = {**before, **changes}
    return {key: value for key, value in after.items() if value is not None}


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 12), st.integers(0, 3), max_size=12), CHANGES)
def test_any_changes_give_the_dict_that_they_should(start: dict[int, int], steps: list[Changes]) -> None:
    wanted, table = start, evolve({}, start)
    versions = [(wanted, table)]
    for changes in steps:
        wanted, table = plain(wanted, changes), evolve(table, changes)
        versions.append((wanted, table))
        assert (dict(table.items()), len(table), set(table)) == (wanted, len(wanted), set(wanted))
        assert all((key in table, table.get(key)) == (key in wanted, wanted.get(key)) for key in range(13))
    # No version changes after it was made, and each knows what changed.
    for (old, before), (new, after) in pairwise(versions):
        assert (dict(before.items()), dict(after.items())) == (old, new)
        differs = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        assert differs <= set(changed_keys(before, after))


def test_what_comes_and_goes_leaves_nothing() -> None:
    """A pod's entries in a table whose base never knew it."""
    table = evolve({}, {0: 0})
    for number in range(1, 500):
        table = evolve(evolve(table, {number: number}), {number: None})
    assert isinstance(table, Evolved)
    assert dict(table.items()) == {0: 0}
    assert len(table._overlay) == 0
