"""Large tables that change a little at a time: the next version shares what did not change, and knows what did.

Copying a table of 50,000 addresses for every pod that starts would cost more than the rest of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, MutableMapping
from operator import eq
from typing import Any

# How many steps back a table remembers its changes, and how many changed keys at most.
_STEPS = 16
_KEYS = 4096
# So many newest differences at most are apart from the others: they are what each version copies. Objects that nobody
# looked at for a while are not in the CPU's caches, so copying a thousand of them for one change costs more than the
# rest of that change.
_NEWEST = 64
# A version whose differences from its base are more than this, and more than an eighth of it, gets a base of its own.
_OVERLAY = 1024
_GONE = object()
_ABSENT = object()


class Evolved(Mapping[Any, Any]):
    """One version of a table, made by `evolve`; it never changes.

    `changed`: the keys that the version before, and it alone, lacks or holds with another value. Versions are known by
    tokens: a reference would keep every table alive that there ever was.
    """

    __slots__ = ("_base", "_length", "_newest", "_overlay", "_trail", "_version", "changed")

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._base: dict[Any, Any] = dict(entries)
        # What differs from the base, and what differs from both; _GONE for a key that is not there. Versions share all
        # three.
        self._overlay: dict[Any, Any] = {}
        self._newest: dict[Any, Any] = {}
        self._length = len(self._base)
        self._version = object()
        self.changed: Collection[Any] = ()
        # (the version before, the keys changed since), newest first.
        self._trail: tuple[tuple[object, Collection[Any]], ...] = ()

    def _next(self, changes: Mapping[Any, Any], added: int) -> Evolved:
        """The version with these changes, which are real ones. None deletes. `added`: by how many keys it is longer."""
        after = Evolved.__new__(Evolved)
        after._length = self._length + added
        after._newest = newest = self._newest.copy()
        for key, value in changes.items():
            if value is not None:
                newest[key] = value
            elif key in self._overlay or key in self._base:
                newest[key] = _GONE
            else:
                # It came and went since the others were made: nothing has to say so.
                del newest[key]
        after._base, after._overlay = self._base, self._overlay
        if len(newest) > _NEWEST:
            after._fold()
        after._version = object()
        after.changed = tuple(changes)
        after._trail = _shortened(((self._version, after.changed), *self._trail))
        return after

    def _fold(self) -> None:
        """Into a version that nobody has yet: the newest differences join the others, and these a new base when they
        are many."""
        newest, self._newest = self._newest, {}
        self._overlay = {**self._overlay, **newest}
        for key, value in newest.items():
            if value is _GONE and key not in self._base:
                del self._overlay[key]
        if len(self._overlay) > max(_OVERLAY, len(self._base) // 8):
            self._base, self._overlay = _merged(self._base, self._overlay), {}

    def __getitem__(self, key: Any) -> Any:
        if self._is_base:
            return self._base[key]
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        if self._newest:
            value = self._newest.get(key, _ABSENT)
            if value is not _ABSENT:
                return default if value is _GONE else value
        if self._overlay:
            value = self._overlay.get(key, _ABSENT)
            if value is not _ABSENT:
                return default if value is _GONE else value
        return self._base.get(key, default)

    def __contains__(self, key: object) -> bool:
        return self.get(key, _ABSENT) is not _ABSENT

    def __iter__(self) -> Iterator[Any]:
        return iter(self._base) if self._is_base else (key for key, _ in self._entries())

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Evolved({dict(self._entries())!r})"

    def items(self) -> ItemsView[Any, Any]:
        return self._base.items() if self._is_base else super().items()

    def copy(self) -> dict[Any, Any]:
        """The entries as a dict of their own."""
        return self._base.copy() if self._is_base else _merged(self._base, {**self._overlay, **self._newest})

    @property
    def _is_base(self) -> bool:
        return not self._overlay and not self._newest

    def _entries(self) -> Iterator[tuple[Any, Any]]:
        """In the order of the base; then what was added to it."""
        overlay = {**self._overlay, **self._newest}
        for key, value in self._base.items():
            found = overlay.get(key, value)
            if found is not _GONE:
                yield key, found
        for key, value in overlay.items():
            if value is not _GONE and key not in self._base:
                yield key, value

    def changed_since(self, other: object) -> Collection[Any] | None:
        """Every key that may differ from another table; None when it is not one of the last versions before this."""
        if not isinstance(other, Evolved):
            return None
        if other is self:
            return ()
        found: dict[Any, None] = {}
        for version, keys in self._trail:
            found.update(dict.fromkeys(keys))
            if version is other._version:
                return found
        return None


class Draft(MutableMapping[Any, Any]):
    """A table that is being changed, over one that is not: it costs what is changed."""

    __slots__ = ("_overlay", "_under")

    def __init__(self, under: Mapping[Any, Any]) -> None:
        self._under = under
        self._overlay: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        value = self._overlay.get(key, _ABSENT)
        if value is _ABSENT:
            return self._under[key]
        if value is _GONE:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._overlay[key] = value

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._overlay[key] = _GONE

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """As a dict's, with one look-up instead of three."""
        value = self._overlay.get(key, _ABSENT)
        if value is _ABSENT:
            value = self._under.get(key, _ABSENT)
        if value is _ABSENT or value is _GONE:
            if default is _ABSENT:
                raise KeyError(key)
            return default
        self._overlay[key] = _GONE
        return value

    def __iter__(self) -> Iterator[Any]:
        yield from (key for key in self._under if self._overlay.get(key) is not _GONE)
        yield from (key for key, value in self._overlay.items() if value is not _GONE and key not in self._under)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def evolve(
    before: Mapping[Any, Any], changes: Mapping[Any, Any], same: Callable[[Any, Any], bool] = eq
) -> Mapping[Any, Any]:
    """`before` with the changes made; a value None deletes the key. The same object when nothing is different then."""
    if not before:
        # Hashing is expensive in a table of addresses: the first version looks nothing up.
        first = Evolved(
            changes if None not in changes.values() else {k: v for k, v in changes.items() if v is not None}
        )
        return first or before
    real, added = {}, 0
    for key, value in changes.items():
        old = before.get(key)
        if not same(old, value):
            real[key] = value
            added += (value is not None) - (old is not None)
    if not real:
        return before
    return (before if isinstance(before, Evolved) else Evolved(before))._next(real, added)


def changed_keys(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Collection[Any]:
    """The keys whose value is another object, is new or is gone; cheap where `new` evolved from `old`.

    An object that is the same may be among them.
    """
    if old is new:
        return ()
    if isinstance(new, Evolved):
        known = new.changed_since(old)
        if known is not None:
            return known
    found = []
    added = 0
    for key, value in new.items():
        last = old.get(key)
        if last is not value:
            found.append(key)
            added += last is None
    if len(old) + added != len(new):
        found.extend(key for key in old if key not in new)
    return found


def _merged(base: Mapping[Any, Any], overlay: Mapping[Any, Any]) -> dict[Any, Any]:
    merged = {**base, **overlay}
    for key, value in overlay.items():
        if value is _GONE:
            del merged[key]
    return merged


def _shortened(trail: tuple[tuple[object, Collection[Any]], ...]) -> tuple[tuple[object, Collection[Any]], ...]:
    total = 0
    for place, (_, keys) in enumerate(trail[:_STEPS]):
        total += len(keys)
        # The newest step is always kept: its keys are there anyway.
        if place and total > _KEYS:
            return trail[:place]
    return trail[:_STEPS]
