"""One object for equal values, for as long as somebody holds it.

A cache with a bound would do as well, but it fills up with what is gone: each pod that comes and goes brings addresses
that never come back, and the process grows for hours before the bound is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar
from weakref import WeakValueDictionary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def interned(make: Callable[[K], V]) -> Callable[[K], V]:
    """`make`, which gives the object that it gave before if that is still in use. The objects take weak references.

    From any thread: two that call at the same moment may get two equal objects.
    """
    known: WeakValueDictionary[K, V] = WeakValueDictionary()

    @wraps(make)
    def get(key: K) -> V:
        found = known.get(key)
        if found is None:
            found = known[key] = make(key)
        return found

    return get
