"""Numbers for what the kernel's maps name: deterministic, remembered, and never two meanings at a time.

A number is a hash of what it stands for, so that every node and every restart arrives at the same one. Where two things
hash alike the later one probes on. A number whose thing is gone stays taken until `settle` says that the maps no longer
hold it: a number that changed its meaning half way through a change would let through what nobody allows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, NamedTuple, TypeVar

from netpolicy.regions import Region
from netpolicy.types import LabelSet, RuleRef

K = TypeVar("K", bound=Hashable)

# A restored number is believed only when it is among the first probes of what it is said to stand for.
_BELIEVED_PROBES = 64


_CANONICAL = json.JSONEncoder(default=str, separators=(",", ":"))


class Space(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int


IDENTITIES = Space(256, (1 << 24) - 1)
REGIONS = Space(1 << 24, (1 << 25) - 1)
RULES = Space(1, (1 << 32) - 1)
SERVICES = Space(1, (1 << 31) - 1)
BACKENDS = Space(1, (1 << 31) - 1)


class Numbering(Generic[K]):
    """Gives each key a number of `space` and keeps it for as long as the key is wanted.

    Keys are written for hashing by `canonical`: equal keys, equal text, on every node and in every process.
    """

    def __init__(self, space: Space, taken: Mapping[K, int] | None = None) -> None:
        self._space = space
        self._numbers: dict[K, int] = {}
        self._keys: dict[int, K] = {}
        self._retired: set[K] = set()
        if taken:
            self.restore(taken.items())

    def number(self, key: K) -> int:
        """The key's number. Raises OverflowError when the space is full."""
        known = self._numbers.get(key)
        if known is not None:
            self._retired.discard(key)
            return known
        if len(self._keys) > self._space.last - self._space.first:
            raise OverflowError(f"no number left between {self._space.first} and {self._space.last}")
        for number in self._probes(key):
            if number not in self._keys:
                self._take(key, number)
                return number
        raise AssertionError("unreachable: the probes visit the whole space")

    def restore(self, pairs: Iterable[tuple[K, int]]) -> None:
        """Take over numbers found in pinned maps, where each can have come from this key and is free."""
        for key, number in pairs:
            if key in self._numbers or number in self._keys:
                continue
            if any(number == probe for _, probe in zip(range(_BELIEVED_PROBES), self._probes(key), strict=False)):
                self._take(key, number)

    def keep(self, wanted: Collection[K]) -> None:
        """Mark every other key as gone. Their numbers are free after the next `settle`."""
        self._retired = {key for key in self._numbers if key not in wanted}

    def retire(self, key: K) -> None:
        """Mark one key as gone, as `keep` does with all that it does not name."""
        if key in self._numbers:
            self._retired.add(key)

    def settle(self) -> None:
        """The maps hold what was compiled last: numbers that are gone may be given again."""
        for key in self._retired:
            del self._keys[self._numbers.pop(key)]
        self._retired = set()

    def __len__(self) -> int:
        return len(self._numbers)

    def _take(self, key: K, number: int) -> None:
        self._numbers[key] = number
        self._keys[number] = key

    def _probes(self, key: K) -> Iterator[int]:
        size = self._space.last - self._space.first + 1
        start = int.from_bytes(blake2b(canonical(key).encode(), digest_size=8).digest(), "big")
        return (self._space.first + (start + step) % size for step in range(size))


class IdentityKey(NamedTuple):
    """What an identity stands for: pods with these labels, among those labels that policies tell pods apart by.

    `told_apart` is part of it because the same labels mean fewer pods once a further label counts.
    """

    labels: LabelSet
    told_apart: tuple[str, ...] = ()


def canonical(key: Hashable) -> str:
    """A key as text that does not depend on the process: strings, numbers, enums, addresses, tuples, identities."""
    if isinstance(key, IdentityKey):
        key = (key.labels.namespace, key.labels.labels, key.labels.named_ports, key.told_apart)
    return _CANONICAL.encode(key)


@dataclass(frozen=True, slots=True)
class Ids:
    """Every numbering of one agent. It lives as long as the agent; the compiler asks it for numbers.

    `services` and `backends` are keyed by whatever the Service compiler names them by (see `canonical`).
    """

    identities: Numbering[IdentityKey] = field(default_factory=lambda: Numbering(IDENTITIES))
    regions: Numbering[Region] = field(default_factory=lambda: Numbering(REGIONS))
    rules: Numbering[RuleRef] = field(default_factory=lambda: Numbering(RULES))
    services: Numbering[Hashable] = field(default_factory=lambda: Numbering(SERVICES))
    backends: Numbering[Hashable] = field(default_factory=lambda: Numbering(BACKENDS))

    def settle(self) -> None:
        """Call after a successful apply (see Numbering.settle)."""
        for numbering in (self.identities, self.regions, self.rules, self.services, self.backends):
            numbering.settle()
