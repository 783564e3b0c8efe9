"""Large tables with small changes: a new version shares unchanged entries with the previous one, and knows the changed
keys.

Copying a table of 50,000 addresses for every new pod would cost more than the rest of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, MutableMapping
from operator import eq
from typing import Any

# For how many previous versions a table remembers the changed keys, and how many keys in total.
_STEPS = 16
_KEYS = 4096
# The newest differences are kept in a dict of their own, up to this number: each version copies only that dict. Copying
# a thousand older objects, which are no longer in the CPU's caches, would cost more than the rest of a change.
_NEWEST = 64
# If a version has more differences from its base than this, and more than an eighth of the base, it gets a new base.
_OVERLAY = 1024
_GONE = object()
_ABSENT = object()


# key -> (value before, value after); None: absent.
Changes = Mapping[Any, tuple[Any, Any]]


class Evolved(Mapping[Any, Any]):
    """One version of a table, made by `evolve`; it never changes.

    `changed`: the differences from the previous version, key -> (value before, value in this version); None: absent.
    Versions are identified by tokens, because a reference to the previous version would keep every older table in
    memory.
    """

    __slots__ = ("_base", "_length", "_newest", "_overlay", "_trail", "_trail_keys", "_version", "changed")

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._base: dict[Any, Any] = dict(entries)
        # `_overlay` differs from the base, `_newest` from both; _GONE marks a deleted key. Versions share base and
        # overlay.
        self._overlay: dict[Any, Any] = {}
        self._newest: dict[Any, Any] = {}
        self._length = len(self._base)
        self._version = object()
        self.changed: Changes = {}
        # (previous version, differences from it), newest first.
        self._trail: tuple[tuple[object, Changes], ...] = ()
        # How many keys there are in all of it.
        self._trail_keys = 0

    def _next(self, changes: Changes, added: int) -> Evolved:
        """The next version. Every change must be a real one. `added`: the growth in keys."""
        after = Evolved.__new__(Evolved)
        base, overlay = after._base, after._overlay = self._base, self._overlay
        after._length = self._length + added
        after._newest = newest = self._newest.copy()
        for key, (_, value) in changes.items():
            if value is not None:
                newest[key] = value
            elif key in base or key in overlay:
                newest[key] = _GONE
            else:
                # The key exists only in `newest`: no _GONE is needed.
                del newest[key]
        if len(newest) > _NEWEST:
            after._fold()
        after._version = object()
        after.changed = changes
        after._remember(self)
        return after

    def _remember(self, before: Evolved) -> None:
        """Set the trail: the newest step, and earlier ones up to the limits. Only for a version that has not been
        returned yet."""
        older, keys = before._trail, before._trail_keys + len(self.changed)
        if len(older) == _STEPS:
            keys -= len(older[-1][1])
            older = older[:-1]
        while keys > _KEYS and older:
            keys -= len(older[-1][1])
            older = older[:-1]
        self._trail, self._trail_keys = ((before._version, self.changed), *older), keys

    def _fold(self) -> None:
        """Merge the newest differences into the overlay, and the overlay into a new base if it is large. Only for a
        version that has not been returned yet, because it changes that version."""
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
        # Hashing a key is expensive: no look-up in an empty dict. No value is None.
        newest, overlay = self._newest, self._overlay
        if newest and (value := newest.get(key)) is not None:
            return default if value is _GONE else value
        if overlay and (value := overlay.get(key)) is not None:
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
        """A new dict of the entries."""
        return self._base.copy() if self._is_base else _merged(self._base, {**self._overlay, **self._newest})

    @property
    def _is_base(self) -> bool:
        return not self._overlay and not self._newest

    def _entries(self) -> Iterator[tuple[Any, Any]]:
        """Entries in the order of the base, followed by the added ones."""
        overlay = {**self._overlay, **self._newest}
        for key, value in self._base.items():
            found = overlay.get(key, value)
            if found is not _GONE:
                yield key, found
        for key, value in overlay.items():
            if value is not _GONE and key not in self._base:
                yield key, value

    def changes_since(self, other: object) -> Changes | None:
        """All keys that may differ from the table `other`, with the values of both. None if `other` is not one of the
        recent previous versions. Without a look-up: hashing addresses is expensive."""
        if not isinstance(other, Evolved):
            return None
        if other is self:
            return {}
        # Nearly always `other` is the previous version.
        if self._trail and self._trail[0][0] is other._version:
            return self._trail[0][1]
        found: dict[Any, tuple[Any, Any]] = {}
        for version, step in self._trail:
            for key, (before, after) in step.items():
                newer = found.get(key)
                found[key] = before, after if newer is None else newer[1]
            if version is other._version:
                return found
        return None


class Draft(MutableMapping[Any, Any]):
    """A mutable view over an unchanged table. Its memory is proportional to the changes."""

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

    def update(self, *entries: Any, **more: Any) -> None:
        """Like dict.update. The inherited one sets the entries one by one."""
        self._overlay.update(*entries, **more)

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._overlay[key] = _GONE

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Like dict.pop, with one look-up instead of three."""
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
    """`before` with `changes` applied; the value None deletes a key. Returns `before` itself if nothing differs."""
    if not changes:
        return before
    if not before:
        # Hashing addresses is expensive: the first version is made without looking up any key.
        first = Evolved(
            changes if None not in changes.values() else {k: v for k, v in changes.items() if v is not None}
        )
        return first or before
    real: dict[Any, tuple[Any, Any]] = {}
    added = 0
    for key, value in changes.items():
        old = before.get(key)
        if not same(old, value):
            real[key] = old, value
            added += (value is not None) - (old is not None)
    if not real:
        return before
    return (before if isinstance(before, Evolved) else Evolved(before))._next(real, added)


def changed_keys(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Collection[Any]:
    """The keys that were added, deleted, or have another value object. Cheap if `new` evolved from `old`.

    The result may contain keys whose value did not change.
    """
    return changes_between(old, new)


def changes_between(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Changes:
    """The keys of `changed_keys` with the values in both tables; None: absent."""
    if old is new:
        return {}
    if isinstance(new, Evolved):
        known = new.changes_since(old)
        if known is not None:
            return known
    found: dict[Any, tuple[Any, Any]] = {}
    added = 0
    for key, value in new.items():
        last = old.get(key)
        if last is not value:
            found[key] = last, value
            added += last is None
    # Every key of `new` is in `old` or was added: equal numbers mean that no key was deleted.
    if len(old) + added != len(new):
        found.update({key: (value, None) for key, value in old.items() if key not in new})
    return found


def _merged(base: Mapping[Any, Any], overlay: Mapping[Any, Any]) -> dict[Any, Any]:
    merged = {**base, **overlay}
    for key, value in overlay.items():
        if value is _GONE:
            del merged[key]
    return merged
