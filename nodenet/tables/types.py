"""The types for declarations of BPF maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    SK_STORAGE = 24
    RINGBUF = 27


class Writer(Enum):
    """What fills a map. Each map has one writer. The values are shown to users."""

    COMPILER = "compiler"  # DesiredState has all of its entries; the reconcile loop writes the difference
    LOOP = "reconcile loop"  # the plan writes it between the other writes
    PROGRAMS = "programs"
    COUNTERS = "programs, per CPU"
    EVENTS = "programs, as a queue"


class Group(Enum):
    """Maps that the reconcile loop updates together. An error in one group does not stop the other group."""

    SERVICES = "Services"
    POLICY = "policy"


class Step(NamedTuple):
    """One step in the order of writes: all sets, or all deletes, of one map."""

    table: str
    deletes: bool


@dataclass(frozen=True, slots=True)
class Order:
    """The positions of a map's sets and deletes in the sequence of its group. reconcile/plan.py and reconcile/commit.py
    give the reasons."""

    sets: int
    deletes: int


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a map. `entries`: the number of entries in the object file. `key`: the configuration key, "" for a
    fixed size. Its default is `entries`, and the map gets the configured number times `times`, divided by
    `share`. `least`: the smallest number that may be configured."""

    entries: int
    key: str = ""
    share: int = 1
    least: int = 1
    times: int = 1


class Records(NamedTuple):
    """The record types of a map's keys and values."""

    key: type[abi.Record]
    value: type[abi.Record]


class Layout(NamedTuple):
    """The members of key and value as `name:bytes`, in order and with padding. `number:bytes` if it is not a struct."""

    key: str
    value: str


# Converts the bytes of a key and value to entries of another layout: one, several, or none. A function that gives one
# for an entry never gives several for another one.
Convert = Callable[[bytes, bytes], Iterable[tuple[bytes, bytes]]]


class Previous(NamedTuple):
    """A layout of an earlier version, and the function that converts its entries to the current layout. `source`: the
    map that had these entries, if it was another one."""

    layout: Layout
    convert: Convert
    source: str = ""


@dataclass(frozen=True, slots=True)
class Carried:
    """How the content of a map is copied to its successor of another layout or size (nodenet/bpf/carry.py).

    When you change `layout`, move the old one to `previous` with a converter. If the meaning of a member changes, give
    it another name, because the maps of a later version are read by member names.
    """

    layout: Layout
    previous: tuple[Previous, ...] = ()
    # Applied to each copied value.
    adapt: Callable[[bytes], bytes] = carried.unchanged
    # Returns the value to keep of (copied, present) if both maps were written during the switch.
    merge: Callable[[bytes, bytes], bytes] = carried.keep_present
    # Returns the time of the last use, for values that contain one. A smaller map then gets the newest entries.
    age: Callable[[bytes], int] | None = None
    # One of so many entries of the new map stays free; 0: none. A plain hash map evicts nothing.
    spare: int = 0


@dataclass(frozen=True, slots=True)
class Slots:
    """An array of buckets with the slots of another map's entries (bpf/lib/fair.h), and how a new one is filled
    (nodenet/bpf/slots.py). Both maps are replaced together.

    `owner`: who pays for an entry of key and value; `age`: the time of its last use. None: the entries are deleted,
    because they are not worth a copy. `follows` and `others`: for flows of several entries, of which one has the slot:
    whether this key is of another one, and the keys of the others.
    """

    of: str
    owner: Callable[[bytes, bytes], int] | None = None
    age: Callable[[bytes], int] | None = None
    follows: Callable[[bytes], bool] = carried.never_follows
    others: Callable[[bytes, bytes], tuple[bytes, ...]] = carried.stands_alone


@dataclass(frozen=True, slots=True)
class BpfMap:
    """One map. `records`: None if user space does not read it by key.

    `full` completes the sentence "when it is full, ..." for users; "" for a map that cannot become full.
    """

    name: str
    type: MapType
    records: Records | None
    size: Size
    writer: Writer
    full: str = ""
    group: Group | None = None
    order: Order | None = None
    # For a map that user space cannot fill again: how its content is copied to its successor. None: it starts empty.
    carried: Carried | None = None
    # For a map of slots: whose.
    slots: Slots | None = None

    @property
    def evicts(self) -> bool:
        """True if a full map evicts its least recently used entry instead of refusing a new one."""
        return self.type is MapType.LRU_HASH

    @property
    def is_array(self) -> bool:
        """True if all entries exist always."""
        return self.type in (MapType.ARRAY, MapType.PERCPU_ARRAY)

    @property
    def fills(self) -> bool:
        """True if the map can become full, and that is trouble: see `full`. An array has all of its entries always."""
        return bool(self.full) and not self.evicts
