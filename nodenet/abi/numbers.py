"""The numbers of bpf/lib/abi.h: enums, flags and prefix lengths."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class DropReason(IntEnum):
    """Hubble's DropReason numbers; the eBPF programs return them negated (enum nn_drop)."""

    INVALID_SOURCE_IP = 132
    POLICY_DENIED = 133
    INVALID_PACKET_DROPPED = 134
    UNSUPPORTED_L3_PROTOCOL = 139
    ERROR_WHILE_CORRECTING_L4_CHECKSUM = 154
    CT_MAP_INSERTION_FAILED = 155
    INVALID_IPV6_EXTENSION_HEADER = 156
    SERVICE_BACKEND_NOT_FOUND = 158
    UNKNOWN_CONNECTION_TRACKING_STATE = 163
    UNSUPPORTED_L2_PROTOCOL = 166
    NO_MAPPING_FOR_NAT_MASQUERADE = 167
    IS_A_CLUSTERIP = 174
    FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND = 175
    FORBIDDEN_ICMPV6_MESSAGE = 176
    DENIED_BY_LB_SRC_RANGE_CHECK = 177
    INVALID_TC_BUFFER = 184
    MULTICAST_HANDLED = 201
    DROP_EP_NOT_READY = 203


class EndpointFlag(IntFlag):
    ISOLATED_INGRESS = 1
    ISOLATED_EGRESS = 2
    NO_REDIRECT = 4
    TIERED_INGRESS = 8
    TIERED_EGRESS = 16


class RuleDirection(IntEnum):
    """The direction in a policy key, and the tier: rules of the Admin tier have keys of their own."""

    INGRESS = 1
    EGRESS = 2
    ADMIN_INGRESS = 5
    ADMIN_EGRESS = 6

    @property
    def is_admin(self) -> bool:
        return self >= RuleDirection.ADMIN_INGRESS


class Action(IntEnum):
    """What a rule does. If two rules have the same precedence, the larger number is the stronger one."""

    ALLOW = 1
    DENY = 2
    PASS = 3


class AddressFlag(IntFlag):
    """nn_service_addr_flags"""

    REFUSE_UNSERVED = 1


class FrontendFlag(IntFlag):
    """nn_frontend_flags"""

    ONLY_ELSEWHERE = 1
    HAS_EXTERNAL = 2
    KEEP_SOURCE = 4
    SOURCE_RANGES = 8
    ALLOWS_NODE = 16
    NODE_ONLY = 32


class FrontendScope(IntEnum):
    """nn_frontend_scope"""

    INTERNAL = 0
    EXTERNAL = 1


class CtFlag(IntFlag):
    SEEN_REPLY = 1
    FIN_FORWARD = 2
    FIN_REPLY = 4
    RST = 8
    TRANSLATED = 16
    PORT = 32
    OUTSIDE = 64
    UNSURE = 128


class NatFlag(IntFlag):
    """nn_nat_flags"""

    SEEN_REPLY = 1
    FIN_FORWARD = 2
    FIN_REPLY = 4
    RST = 8
    OPENED = 16
    HAS_SOURCE = 32


class NatHalf(IntEnum):
    """nn_nat_half"""

    CLIENT = 0
    REPLY = 1
    SOURCE_CLIENT = 2
    SOURCE_REPLY = 3


class CtStatus(IntEnum):
    NEW = 0
    ESTABLISHED = 1
    REPLY = 2
    RELATED = 3


class EventType(IntEnum):
    """Hubble's monitor event types."""

    DROP = 1
    TRACE = 4
    POLICY_VERDICT = 5
    SOCK = 7


class ObservationPoint(IntEnum):
    """Trace sub-types."""

    TO_ENDPOINT = 0
    TO_STACK = 3
    FROM_ENDPOINT = 5
    FROM_NETWORK = 10


class FairTable(IntEnum):
    """nn_table: the tables whose entries are counted when they end."""

    CT = 0
    FRAG = 1
    SOCK = 2
    NAT = 3


class EntryEnd(IntEnum):
    """nn_entry_end: how an entry of such a table ended in the programs."""

    EXPIRED = 0
    EVICTED = 1
    REFUSED = 2


# How many numbers each FairTable has in a MetricsKey.
ENTRY_ENDS = 4
# The metrics key of events that did not fit into the ring buffer.
LOST_EVENTS = 255
# Prefix length of addresses in an LPM key: IPv4 starts after the 96 bits of ::ffff:.
V4_PREFIX_BITS = 96
# nn_policy_key.prefixlen with subject, peer and direction; with the protocol too; port bits (0-16) are added to the
# latter.
POLICY_BITS_DIRECTION = 72
POLICY_BITS_PROTOCOL = 80
