"""The registry of BPF maps: one declaration per map, read by everything that handles maps.

A new map is a declaration here, its C struct and map (bpf/lib/abi.h, bpf/lib/<feature>.h), and the code that uses it.
tests/bpf/test_tables.py compares every declaration with the built objects, tests/unit/test_tables.py compares
docs/maps.md with the declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from nodenet import abi


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
    # The programs wrote it, so nothing can fill it again: its content is copied into a map of another layout.
    carried: bool = False

    @property
    def evicts(self) -> bool:
        """Whether a full map drops its least recently used entry instead of refusing a new one."""
        return self.type is MapType.LRU_HASH


_STAYS = "a Service that does not fit stays as it was, whole"

ENDPOINT = BpfMap(
    "nn_endpoint",
    MapType.HASH,
    Records(abi.AddressKey, abi.EndpointEntry),
    Size(1024, "endpoint_entries"),
    Writer.COMPILER,
    "further pods of the node get no network: their CNI ADD waits",
    Group.POLICY,
    Order(sets=5, deletes=6),
)
IPCACHE = BpfMap(
    "nn_ipcache",
    MapType.LPM_TRIE,
    Records(abi.LpmKey, abi.U32),
    Size(131072, "ipcache_entries"),
    Writer.COMPILER,
    "addresses that do not fit count as the world: rules by label do not allow them",
    Group.POLICY,
    Order(sets=4, deletes=7),
)
CIDR = BpfMap(
    "nn_cidr",
    MapType.LPM_TRIE,
    Records(abi.LpmKey, abi.U32),
    Size(65536),
    Writer.COMPILER,
    "no ipBlock is added or removed any more",
    Group.POLICY,
    Order(sets=2, deletes=3),
)
POLICY = BpfMap(
    "nn_policy",
    MapType.LPM_TRIE,
    Records(abi.PolicyKey, abi.U32),
    Size(1048576, "policy_entries"),
    Writer.COMPILER,
    "allows that do not fit are left out; what isolates is in force",
    Group.POLICY,
    Order(sets=1, deletes=8),
)
STATE = BpfMap("nn_state", MapType.ARRAY, Records(abi.U32, abi.State), Size(1), Writer.LOOP, group=Group.POLICY)
FRONTEND = BpfMap(
    "nn_frontend",
    MapType.HASH,
    Records(abi.FrontendKey, abi.FrontendEntry),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=5, deletes=1),
)
BACKEND = BpfMap(
    "nn_backend",
    MapType.HASH,
    Records(abi.U32, abi.AddressPort),
    Size(65536, "backend_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=2, deletes=7),
)
# Each member has a slot of nn_frontend too, except for backends that finish their work.
MEMBER = BpfMap(
    "nn_member",
    MapType.HASH,
    Records(abi.MemberKey, abi.AddressPort),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=3, deletes=6),
)
REVNAT = BpfMap(
    "nn_revnat",
    MapType.HASH,
    Records(abi.U32, abi.AddressPort),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=4, deletes=8),
)
SOCK_REVNAT = BpfMap(
    "nn_sock_revnat",
    MapType.LRU_HASH,
    Records(abi.SockRevnatKey, abi.U32),
    Size(131072),
    Writer.PROGRAMS,
    "sockets that were idle longest see their backend's address in place of the Service's",
    carried=True,
)
SOCK_CHOICE = BpfMap(
    "nn_sock_choice",
    MapType.LRU_HASH,
    Records(abi.SockRevnatKey, abi.U32),
    Size(65536),
    Writer.PROGRAMS,
    "unconnected sockets that were idle longest get a backend again with their next datagram",
    carried=True,
)
CT = BpfMap(
    "nn_ct",
    MapType.LRU_HASH,
    Records(abi.CtKey, abi.CtEntry),
    Size(131072, "ct_entries"),
    Writer.PROGRAMS,
    "connections that were idle longest are judged again at their next packet, as found in their middle",
    carried=True,
)
# A flow to a Service that is translated packet by packet is in nn_ct and in nn_lb_flow.
LB_FLOW = BpfMap(
    "nn_lb_flow",
    MapType.LRU_HASH,
    Records(abi.CtKey, abi.LbFlowEntry),
    Size(65536, "ct_entries", share=2),
    Writer.PROGRAMS,
    "flows that were idle longest get a backend again, the same one while the Service is unchanged",
    carried=True,
)
LB_PORT = BpfMap(
    "nn_lb_port",
    MapType.LRU_HASH,
    Records(abi.CtKey, abi.LbPortEntry),
    Size(8192),
    Writer.PROGRAMS,
    "answers to UDP flows that were idle longest are dropped until the pod sends again",
    carried=True,
)
FRAG = BpfMap(
    "nn_frag",
    MapType.LRU_HASH,
    None,
    Size(8192),
    Writer.PROGRAMS,
    "later fragments of the oldest datagrams are dropped",
)
PORT = BpfMap(
    "nn_port",
    MapType.LRU_HASH,
    None,
    Size(4096),
    Writer.PROGRAMS,
    "frames without an address of the pod that was silent longest are dropped until it announces itself",
)
CLAIM = BpfMap(
    "nn_claim",
    MapType.LRU_HASH,
    None,
    Size(4096),
    Writer.PROGRAMS,
    "the link-local address that was claimed longest ago may be claimed by another pod",
)
METRICS = BpfMap(
    "nn_metrics", MapType.PERCPU_ARRAY, Records(abi.MetricsKey, abi.MetricsEntry), Size(768), Writer.COUNTERS
)
SCRATCH = BpfMap("nn_scratch", MapType.PERCPU_ARRAY, None, Size(1), Writer.COUNTERS)
# The size of a ring buffer is in bytes.
EVENTS = BpfMap(
    "nn_events",
    MapType.RINGBUF,
    None,
    Size(1 << 22),
    Writer.EVENTS,
    "events are lost, counted in nn_metrics and reported as lost flows",
)

_ALL = (
    ENDPOINT,
    IPCACHE,
    CIDR,
    POLICY,
    STATE,
    FRONTEND,
    BACKEND,
    MEMBER,
    REVNAT,
    SOCK_REVNAT,
    SOCK_CHOICE,
    CT,
    LB_FLOW,
    LB_PORT,
    FRAG,
    PORT,
    CLAIM,
    METRICS,
    SCRATCH,
    EVENTS,
)

MAPS: Mapping[str, BpfMap] = {one.name: one for one in _ALL}

# Maps that user space reads or writes by key, in records.
KEYED: Mapping[str, Records] = {name: one.records for name, one in MAPS.items() if one.records}
# Keys of the configuration that are sizes of maps.
SIZE_KEYS = tuple(dict.fromkeys(one.size.key for one in _ALL if one.size.key))


def filled_by(*writers: Writer) -> tuple[str, ...]:
    """Names of the maps with these writers, in the order of the registry."""
    return tuple(one.name for one in _ALL if one.writer in writers)


def members(group: Group) -> tuple[str, ...]:
    """Names of the maps of a group, in the order of the registry."""
    return tuple(one.name for one in _ALL if one.group is group)


def steps(group: Group) -> tuple[Step, ...]:
    """The order of writes of a group: each of its maps twice, once for its sets and once for its deletes."""
    placed = [
        (place, Step(one.name, deletes))
        for one in _ALL
        if one.group is group and one.order is not None
        for place, deletes in ((one.order.sets, False), (one.order.deletes, True))
    ]
    return tuple(step for _, step in sorted(placed))


def sizes(configured: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the maps that have a key, by map name; `configured` has a number of entries for each of SIZE_KEYS."""
    return {one.name: max(1, configured[one.size.key] // one.size.share) for one in _ALL if one.size.key}
