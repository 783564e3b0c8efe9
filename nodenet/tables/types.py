"""What a declaration of a BPF map is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from nodenet import abi
from nodenet.abi import carried


class MapType(IntEnum):
    """enum bpf_map_type of the kernel."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27


class Writer(Enum):
    """Who fills a map. Each map has one writer; the values are the words for people."""

    COMPILER = "compiler"  # DesiredState has all of its entries, and the reconcile loop writes the difference
    LOOP = "reconcile loop"  # the plan itself, as part of the order of writes
    PROGRAMS = "programs"
    COUNTERS = "programs, per CPU"
    EVENTS = "programs, as a queue"


class Group(Enum):
    """Maps that the reconcile loop brings up to date together. Trouble with one group does not hold up the other."""

    SERVICES = "Services"
    POLICY = "policy"


class Step(NamedTuple):
    """One step in the order of writes: all sets, or all deletes, of one map."""

    table: str
    deletes: bool


@dataclass(frozen=True, slots=True)
class Order:
    """Places of a map's sets and of its deletes in the sequence of its group. reconcile/plan.py gives the reasons."""

    sets: int
    deletes: int


@dataclass(frozen=True, slots=True)
class Size:
    """`entries` is what the objects declare and the default of the configuration key `key`. "" means that the size is
    fixed. The map has `entries` of the key divided by `share`."""

    entries: int
    key: str = ""
    share: int = 1


class Records(NamedTuple):
    """The record types of a map's keys and values."""

    key: type[abi.Record]
    value: type[abi.Record]


class Layout(NamedTuple):
    """Members of key and value as `name:bytes`, in their order and with padding; of no struct `number:bytes`."""

    key: str
    value: str


# Bytes of an entry's key and value in another layout; None leaves the entry out.
Convert = Callable[[bytes, bytes], tuple[bytes, bytes] | None]


class Previous(NamedTuple):
    """A layout that the map had in an earlier version, and what makes entries of this layout out of its entries."""

    layout: Layout
    convert: Convert


@dataclass(frozen=True, slots=True)
class Carried:
    """How the content of a map comes into a map of another layout or size (nodenet/bpf/carry.py).

    When `layout` changes, the former one moves to `previous` together with its converter. A member whose meaning
    changes gets another name: a map of a later version is read by the names of its members.
    """

    layout: Layout
    previous: tuple[Previous, ...] = ()
    # For each value that is copied.
    adapt: Callable[[bytes], bytes] = carried.unchanged
    # The value to keep out of (copied, present) where both maps were written during the switch.
    merge: Callable[[bytes, bytes], bytes] = carried.keep_present
    # When a value was last used, where the value says that. A smaller map gets the newest entries.
    age: Callable[[bytes], int] | None = None


@dataclass(frozen=True, slots=True)
class BpfMap:
    """One map. `records` is None where user space does not read it by key.

    `full` completes the sentence "when it is full, ..." for people; "" for a map that cannot be full.
    """

    name: str
    type: MapType
    records: Records | None
    size: Size
    writer: Writer
    full: str = ""
    group: Group | None = None
    order: Order | None = None
    # Nothing can fill it again: its content is copied into the map that replaces it. None: it starts empty.
    carried: Carried | None = None

    @property
    def evicts(self) -> bool:
        """Whether a full map drops its least recently used entry instead of refusing a new one."""
        return self.type is MapType.LRU_HASH
