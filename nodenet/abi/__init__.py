"""The structs and numbers of bpf/lib/abi.h: packs and unpacks them. Only these modules handle the bytes of map keys and
values.

Records are NamedTuples: they hash and compare in C, which matters because a restart compares tens of thousands.
Addresses are `ipaddress` objects (IPv4 is stored as ::ffff:a.b.c.d), MACs are text, ports are integers.
tests/bpf/test_abi.py compares all sizes, offsets and enums with the BTF of the built objects. nodenet/tables lists the
maps and their records.
"""

from __future__ import annotations

from nodenet.abi.events import EVENT_SIZE, Event, MetricsEntry, MetricsKey
from nodenet.abi.flows import CtEntry, CtKey, NatEntry, NatKey, SockQuestion, SockRevnatKey
from nodenet.abi.numbers import (
    ENTRY_ENDS,
    LOST_EVENTS,
    POLICY_BITS_DIRECTION,
    POLICY_BITS_PROTOCOL,
    V4_PREFIX_BITS,
    Action,
    AddressFlag,
    CtFlag,
    CtStatus,
    DropReason,
    EndpointFlag,
    EntryEnd,
    EventType,
    FairTable,
    FrontendFlag,
    FrontendScope,
    NatFlag,
    NatHalf,
    ObservationPoint,
    RuleDirection,
)
from nodenet.abi.packing import U32, Record, pack_addr, unpack_addr
from nodenet.abi.policy import AddressKey, EndpointEntry, LpmKey, PolicyKey, Rule, State
from nodenet.abi.services import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    AddressPort,
    AffinityEntry,
    AffinityKey,
    ClientEntry,
    ClientKey,
    FrontendEntry,
    FrontendKey,
    MemberKey,
    SourceRangeKey,
)
from nodenet.abi.versions import EndpointVersions, NumberVersions, RuleVersions, Versions, always

__all__ = [
    "ENTRY_ENDS",
    "EVENT_SIZE",
    "LOST_EVENTS",
    "MEMBER_AFFINITY",
    "MEMBER_EXTERNAL",
    "POLICY_BITS_DIRECTION",
    "POLICY_BITS_PROTOCOL",
    "U32",
    "V4_PREFIX_BITS",
    "Action",
    "AddressFlag",
    "AddressKey",
    "AddressPort",
    "AffinityEntry",
    "AffinityKey",
    "ClientEntry",
    "ClientKey",
    "CtEntry",
    "CtFlag",
    "CtKey",
    "CtStatus",
    "DropReason",
    "EndpointEntry",
    "EndpointFlag",
    "EndpointVersions",
    "EntryEnd",
    "Event",
    "EventType",
    "FairTable",
    "FrontendEntry",
    "FrontendFlag",
    "FrontendKey",
    "FrontendScope",
    "LpmKey",
    "MemberKey",
    "MetricsEntry",
    "MetricsKey",
    "NatEntry",
    "NatFlag",
    "NatHalf",
    "NatKey",
    "NumberVersions",
    "ObservationPoint",
    "PolicyKey",
    "Record",
    "Rule",
    "RuleDirection",
    "RuleVersions",
    "SockQuestion",
    "SockRevnatKey",
    "SourceRangeKey",
    "State",
    "Versions",
    "always",
    "pack_addr",
    "unpack_addr",
]
