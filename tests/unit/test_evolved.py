"""Tables that change a little at a time: every version is right, and knows what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet import evolved
from nodenet.evolved import Evolved, changed_keys, changes_between, evolve

STEPS = st.lists(st.dictionaries(st.integers(0, 30), st.none() | st.integers(1, 3), max_size=4), max_size=40)


@pytest.fixture(scope="module", autouse=True)
def small_levels() -> Iterator[None]:
    """So that few changes reach the overlay and a new base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolved, "_NEWEST", 2)
        patch.setattr(evolved, "_OVERLAY", 6)
        patch.setattr(evolved, "_STEPS", 5)
        patch.setattr(evolved, "_KEYS", 8)
        yield


def check(table: Mapping[Any, Any], plain: dict[int, int]) -> None:
    assert dict(table.items()) == plain
    assert list(table) == [key for key, _ in table.items()]
    assert len(table) == len(plain)
    for key in range(31):
        assert table.get(key) == plain.get(key)
        assert (key in table) == (key in plain)
        if key in plain:
            assert table[key] == plain[key]
        else:
            with pytest.raises(KeyError):
                table[key]
    if isinstance(table, Evolved):
        assert table.copy() == plain


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_a_version_is_right_and_stays_so(steps: list[dict[int, int | None]]) -> None:
    table: Mapping[Any, Any] = Evolved({})
    plain: dict[int, int] = {}
    versions: list[tuple[Mapping[Any, Any], dict[int, int]]] = []
    for changes in steps:
        before, old = table, dict(plain)
        table = evolve(table, changes)
        for key, value in changes.items():
            plain.pop(key, None)
            if value is not None:
                plain[key] = value
        assert isinstance(table, Evolved)
        check(table, plain)
        assert (table is before) == (plain == old) or not before
        told = table.changes_since(before)
        if told is not None:
            assert told == {k: (old.get(k), plain.get(k)) for k in {**old, **plain} if old.get(k) != plain.get(k)}
        for earlier, content in versions:
            different = {key for key in {**content, **plain} if content.get(key) != plain.get(key)}
            assert different <= set(changed_keys(earlier, table))
            for key, pair in changes_between(earlier, table).items():
                assert pair == (content.get(key), plain.get(key))
        versions.append((table, dict(plain)))
    for earlier, content in versions:
        check(earlier, content)


def test_the_order_is_that_of_a_dict_that_takes_the_changes() -> None:
    """The order of a map's entries follows from the changes alone, not from how versions are kept."""
    table: Mapping[Any, Any] = Evolved({1: 1, 2: 1, 3: 1})
    plain = {1: 1, 2: 1, 3: 1}
    for turn in range(20):
        changes = {2: 2 + turn, 10 + turn: 1, 10 + turn - 4: 5 + turn}
        table = evolve(table, changes)
        plain.update(changes)
        assert list(table) == list(plain)


def test_what_comes_and_goes_leaves_nothing() -> None:
    """A pod's entries in a table whose base never knew it."""
    table = evolve({}, {0: 0})
    for number in range(1, 500):
        table = evolve(evolve(table, {number: number}), {number: None})
    assert isinstance(table, Evolved)
    assert dict(table.items()) == {0: 0}
    assert (table._newest, table._overlay) == ({}, {})


def test_a_version_knows_what_changes_since_the_last_ones_and_forgets_the_others() -> None:
    """At most 5 steps and 8 keys, but the newest step always."""
    versions = [Evolved({0: 0})]
    for number in range(1, 8):
        versions.append(evolve(versions[-1], {number: 1}))  # type: ignore[arg-type]
    assert [versions[-1].changes_since(one) is not None for one in versions] == [False, False] + 6 * [True]
    assert set(versions[-1].changes_since(versions[2]) or ()) == {3, 4, 5, 6, 7}
    many = evolve(versions[-1], dict.fromkeys(range(10, 16), 1))
    assert isinstance(many, Evolved)
    assert set(many.changes_since(versions[-3]) or ()) == {6, 7, *range(10, 16)}
    assert many.changes_since(versions[-4]) is None
    more = evolve(many, dict.fromkeys(range(20, 40), 1))
    assert isinstance(more, Evolved)
    assert set(more.changes_since(many) or ()) == set(range(20, 40))
    assert more.changes_since(versions[-1]) is None
