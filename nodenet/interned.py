"""Returns one shared object for equal keys, as long as it is referenced.

A bounded cache would fill up with unused objects: deleted pods leave addresses that are never used again, so the
process would grow for hours until the bound is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import TypeVar
from weakref import WeakValueDictionary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Texts that `shared` keeps, about 1 MB.
_TEXTS = 1 << 14


@lru_cache(maxsize=_TEXTS)
def shared(text: str) -> str:
    """One object for equal texts: names of nodes and namespaces, labels. Weak references to texts do not exist, so the
    texts that were used last are kept. sys.intern would keep every text for ever on Python 3.12."""
    return text


def interned(make: Callable[[K], V]) -> Callable[[K], V]:
    """Decorate `make`: for a known key return the previous object if it is still in use. Results must support weak
    references.

    Thread-safe, except that two concurrent calls may return two equal objects.
    """
    known: WeakValueDictionary[K, V] = WeakValueDictionary()

    @wraps(make)
    def get(key: K) -> V:
        found = known.get(key)
        if found is None:
            found = known[key] = make(key)
        return found

    return get
