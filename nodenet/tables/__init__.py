"""The registry of BPF maps, with one declaration per map. All code that handles maps reads it.

A new map is a declaration here, its C struct and map (bpf/lib/abi.h, bpf/lib/<feature>.h), and the code that uses it.
tests/bpf/test_tables.py compares every declaration with the built objects, tests/unit/test_tables.py compares
docs/maps.md with the declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from nodenet import abi
from nodenet.abi import carried, slots
from nodenet.tables.types import (
    BpfMap,
    Carried,
    Group,
    Layout,
    MapType,
    Order,
    Previous,
    Records,
    Size,
    Slots,
    Step,
    Writer,
)

__all__ = [
    "BpfMap",
    "Carried",
    "Group",
    "Layout",
    "MapType",
    "Order",
    "Previous",
    "Records",
    "Size",
    "Slots",
    "Step",
    "Writer",
]


_FLOW = "pod:16 remote:16 pod_port:2 remote_port:2 protocol:1 pad:3"
_SOCKET = "cookie:8 addr:16 port:2 protocol:1 pad:5"
_CT_VALUE = "last_seen:4 revision:4 rule_id:4 rev_nat_index:4 direction:1 flags:1 endpoint_id:2 created:4"
# nodenet/compile/shares.py
_SHARED = "half is shared out; a namespace that asks for more than its part loses the rules of its largest policies"
_STAYS = "a Service that does not fit stays as it was, whole"

ENDPOINT = BpfMap(
    "nn_endpoint",
    MapType.HASH,
    Records(abi.AddressKey, abi.EndpointVersions),
    Size(1024, "endpoint_entries"),
    Writer.COMPILER,
    "further pods of the node get no network: their CNI ADD waits",
    Group.POLICY,
    Order(sets=4, deletes=5),
)
IPCACHE = BpfMap(
    "nn_ipcache",
    MapType.LPM_TRIE,
    Records(abi.LpmKey, abi.NumberVersions),
    Size(131072, "ipcache_entries"),
    Writer.COMPILER,
    "addresses of pods that do not fit are those of pods that are not known: no rule selects them",
    Group.POLICY,
    Order(sets=3, deletes=6),
)
CIDR = BpfMap(
    "nn_cidr",
    MapType.LPM_TRIE,
    Records(abi.LpmKey, abi.NumberVersions),
    Size(65536),
    Writer.COMPILER,
    _SHARED,
    Group.POLICY,
    Order(sets=1, deletes=7),
)
POLICY = BpfMap(
    "nn_policy",
    MapType.LPM_TRIE,
    Records(abi.PolicyKey, abi.RuleVersions),
    Size(1048576, "policy_entries"),
    Writer.COMPILER,
    _SHARED,
    Group.POLICY,
    Order(sets=2, deletes=8),
)
# Carried, because a generation that entries of nn_ct have must not be used again with another meaning. The earlier
# layout had a policy revision in its place.
STATE = BpfMap(
    "nn_state",
    MapType.ARRAY,
    Records(abi.U32, abi.State),
    Size(1),
    Writer.LOOP,
    group=Group.POLICY,
    carried=Carried(
        Layout("number:4", "generation:4 recheck_from:4"),
        previous=(Previous(Layout("number:4", "policy_revision:4 pad:4"), carried.state_of_revision),),
    ),
)
FRONTEND = BpfMap(
    "nn_frontend",
    MapType.HASH,
    Records(abi.FrontendKey, abi.FrontendEntry),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=7, deletes=1),
)
SERVICE_ADDR = BpfMap(
    "nn_service_addr",
    MapType.HASH,
    Records(abi.AddressKey, abi.U32),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=6, deletes=11),
)
BACKEND = BpfMap(
    "nn_backend",
    MapType.HASH,
    Records(abi.U32, abi.AddressPort),
    Size(65536, "backend_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=2, deletes=9),
)
# Each member also has a slot in nn_frontend, except for terminating backends.
MEMBER = BpfMap(
    "nn_member",
    MapType.HASH,
    Records(abi.MemberKey, abi.AddressPort),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=3, deletes=8),
)
REVNAT = BpfMap(
    "nn_revnat",
    MapType.HASH,
    Records(abi.U32, abi.AddressPort),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    _STAYS,
    Group.SERVICES,
    Order(sets=4, deletes=10),
)
SOURCE_RANGE = BpfMap(
    "nn_source_range",
    MapType.LPM_TRIE,
    Records(abi.SourceRangeKey, abi.U32),
    Size(65536, "service_entries"),
    Writer.COMPILER,
    "sources in ranges that do not fit are refused",
    Group.SERVICES,
    Order(sets=5, deletes=12),
)
# The pods whose sockets' calls have affinity; from the endpoints.
CLIENT = BpfMap(
    "nn_client",
    MapType.HASH,
    Records(abi.ClientKey, abi.ClientEntry),
    Size(1024, "endpoint_entries"),
    Writer.COMPILER,
    "calls of further pods have an affinity of their own at the socket, and another one packet by packet",
    Group.SERVICES,
    Order(sets=13, deletes=14),
)
SOURCE_ADDR = BpfMap(
    "nn_source_addr",
    MapType.HASH,
    Records(abi.U32, abi.AddressKey),
    Size(2),
    Writer.COMPILER,
    "calls from outside do not reach backends on other nodes",
    Group.SERVICES,
    Order(sets=15, deletes=16),
)
AFFINITY = BpfMap(
    "nn_affinity",
    MapType.LRU_HASH,
    Records(abi.AffinityKey, abi.AffinityEntry),
    Size(16384),
    Writer.PROGRAMS,
    "the client that called its Service longest ago may get another backend with its next connection",
    carried=Carried(Layout("client:16 affinity_id:4", "backend_id:4 last_used:4")),
)
AFFINITY_OUT = replace(
    AFFINITY,
    name="nn_affinity_out",
    full="the client outside that called its Service longest ago may get another backend with its next connection",
)
# Kept at each socket, so neither has a size. User space reads nn_sock_peer with the program sock_service.
SOCK_PEER = BpfMap("nn_sock_peer", MapType.SK_STORAGE, None, Size(0), Writer.PROGRAMS)
SOCK_SENT = BpfMap("nn_sock_sent", MapType.SK_STORAGE, None, Size(0), Writer.PROGRAMS)
# Versions before decision 0042 filled these two. Their entries are copied for the sockets that are open.
SOCK_REVNAT = BpfMap(
    "nn_sock_revnat",
    MapType.HASH,
    Records(abi.SockRevnatKey, abi.U32),
    Size(131072),
    Writer.PROGRAMS,
    "further sockets that were open during the upgrade see their backend's address in place of the Service's",
    carried=Carried(Layout(_SOCKET, "rev_nat_index:4")),
)
SOCK_CHOICE = BpfMap(
    "nn_sock_choice",
    MapType.HASH,
    Records(abi.SockRevnatKey, abi.U32),
    Size(65536),
    Writer.PROGRAMS,
    "further unconnected sockets that were open during the upgrade get a backend again with their next datagram",
    carried=Carried(Layout(_SOCKET, "number:4")),
)
CT = BpfMap(
    "nn_ct",
    MapType.HASH,
    Records(abi.CtKey, abi.CtEntry),
    Size(131072, "ct_entries"),
    Writer.PROGRAMS,
    "the pod that opened most flows loses those that were idle longest: their next packet is judged again, as found in "
    "its middle",
    carried=Carried(
        Layout(_FLOW, _CT_VALUE),
        adapt=carried.ct_recheck,
        merge=carried.ct_merged,
        age=carried.ct_age,
        spare=5,
    ),
)
# 16 slots in each bucket: for four fifths of nn_ct, so that an insertion finds room before another entry is evicted.
# One bucket needs more than its 16 entries of nn_ct.
CT_SLOT = BpfMap(
    "nn_ct_slot",
    MapType.ARRAY,
    None,
    Size(6553, "ct_entries", share=20, least=20),
    Writer.PROGRAMS,
    slots=Slots(CT.name, slots.ct_owner, carried.ct_age),
)
# A flow to a Service that is translated packet by packet has an entry in nn_ct, and two here. A flow from outside to a
# backend on another node has four. The table has more entries than all slots (NAT_SLOT) need with four each: only what
# lost its slot can fill it.
NAT = BpfMap(
    "nn_nat",
    MapType.HASH,
    Records(abi.NatKey, abi.NatEntry),
    Size(262144, "ct_entries", times=2),
    Writer.PROGRAMS,
    "the pod that called most loses the flows that were idle longest: their next packet gets a backend again, the same "
    "one while the Service is unchanged",
    carried=Carried(
        Layout(
            "saddr:16 daddr:16 sport:2 dport:2 protocol:1 reply:1 pad:2",
            "saddr:16 daddr:16 sport:2 dport:2 last_seen:4 rev_nat_index:4 backend_id:4 slot:2 endpoint_id:2 flags:1 "
            "pad:3",
        ),
        (
            Previous(
                Layout(
                    _FLOW,
                    "backend:16 port:2 endpoint_id:2 backend_id:4 rev_nat_index:4 last_seen:4 opening:1 pad:1 slot:2 "
                    "source_port:2 pad2:2",
                ),
                carried.nat_of_lb_flow,
                source="nn_lb_flow",
            ),
        ),
        merge=carried.nat_newest,
        age=carried.nat_age,
        spare=5,
    ),
)
# A flow has one slot, so the slots are for two fifths of ct_entries: four entries each take four fifths of nn_nat.
NAT_SLOT = BpfMap(
    "nn_nat_slot",
    MapType.ARRAY,
    None,
    Size(3276, "ct_entries", share=40, least=40),
    Writer.PROGRAMS,
    slots=Slots(NAT.name, slots.nat_owner, carried.nat_age, carried.nat_follows, carried.nat_others),
)
FRAG = BpfMap(
    "nn_frag",
    MapType.HASH,
    None,
    Size(8192),
    Writer.PROGRAMS,
    "the pod that sent most fragmented datagrams loses the oldest ones: their later fragments are dropped",
)
FRAG_SLOT = BpfMap("nn_frag_slot", MapType.ARRAY, None, Size(409), Writer.PROGRAMS, slots=Slots(FRAG.name))
PORT = BpfMap(
    "nn_port",
    MapType.LRU_HASH,
    None,
    Size(4096),
    Writer.PROGRAMS,
    "frames without an address of the pod that was silent longest are dropped until it announces itself",
    carried=Carried(Layout("number:4", "mac:6 pad:2 addr:16 link_local:16")),
)
CLAIM = BpfMap(
    "nn_claim",
    MapType.LRU_HASH,
    None,
    Size(4096),
    Writer.PROGRAMS,
    "the link-local address that was claimed longest ago may be claimed by another pod",
    carried=Carried(Layout("union:16", "number:4")),
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
    SERVICE_ADDR,
    BACKEND,
    MEMBER,
    REVNAT,
    SOURCE_RANGE,
    CLIENT,
    SOURCE_ADDR,
    AFFINITY,
    AFFINITY_OUT,
    SOCK_PEER,
    SOCK_SENT,
    SOCK_REVNAT,
    SOCK_CHOICE,
    CT,
    CT_SLOT,
    NAT,
    NAT_SLOT,
    FRAG,
    FRAG_SLOT,
    PORT,
    CLAIM,
    METRICS,
    SCRATCH,
    EVENTS,
)

MAPS: Mapping[str, BpfMap] = {one.name: one for one in _ALL}

# Maps of earlier versions whose entries another map has taken over: their names, and its name.
SUCCESSORS: Mapping[str, str] = {
    previous.source: one.name for one in _ALL if one.carried for previous in one.carried.previous if previous.source
}

# The record types of the maps that user space reads or writes by key.
KEYED: Mapping[str, Records] = {name: one.records for name, one in MAPS.items() if one.records}
# The configuration keys that set sizes of maps.
SIZE_KEYS = tuple(dict.fromkeys(one.size.key for one in _ALL if one.size.key))


def filled_by(*writers: Writer) -> tuple[str, ...]:
    """Names of the maps that these writers fill, in the order of the registry."""
    return tuple(one.name for one in _ALL if one.writer in writers)


@cache
def members(group: Group) -> tuple[str, ...]:
    """Names of the maps of a group, in the order of the registry."""
    return tuple(one.name for one in _ALL if one.group is group)


def steps(group: Group) -> tuple[Step, ...]:
    """The order of writes in a group. Each map occurs twice: once for its sets and once for its deletes."""
    placed = [
        (place, Step(one.name, deletes))
        for one in _ALL
        if one.group is group and one.order is not None
        for place, deletes in ((one.order.sets, False), (one.order.deletes, True))
    ]
    return tuple(step for _, step in sorted(placed))


def least_entries(key: str) -> int:
    """The smallest number of entries that a key of SIZE_KEYS may have."""
    return max(one.size.least for one in _ALL if one.size.key == key)


def sizes(configured: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the configurable maps, by map name. `configured` has a number of entries for each of SIZE_KEYS."""
    return {
        one.name: max(1, configured[one.size.key] * one.size.times // one.size.share) for one in _ALL if one.size.key
    }
