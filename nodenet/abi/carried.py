"""Converts the entries of a map that is replaced by another map.

The functions take bytes, not records, because half a million entries may be copied at once.
"""

from __future__ import annotations

import struct

from nodenet.abi.numbers import CtFlag, NatFlag, NatHalf
from nodenet.model import Protocol

# The generation of a flow that must be judged again. The programs compare ages, and `recheck_from` is never larger than
# the generation in force (nodenet/reconcile/switch.py), so the age of this one is always too large.
NEVER_JUDGED = 0xFFFFFFFF

_CT = struct.Struct("=IIIIBBHI")
_CT_STICKY = CtFlag.SEEN_REPLY | CtFlag.FIN_FORWARD | CtFlag.FIN_REPLY
_CT_PROTOCOL_OFFSET = 36  # in nn_ct_key
# Seconds, as in bpf/lib/conntrack.h.
_TCP_ESTABLISHED, _TCP_OPENING, _TCP_CLOSING = 8000, 60, 10
_STREAM, _OTHER = 180, 60
_BOTH_FINS = CtFlag.FIN_FORWARD | CtFlag.FIN_REPLY
_NAT = struct.Struct("=16s16sHHIIIHHB3x")
# Addresses and ports, with which nn_nat_key, nn_nat_entry and nn_ct_key begin.
_NAT_ENDS = struct.Struct("=16s16sHH")
_NAT_REPLY_OFFSET = 37  # in nn_nat_key; the protocol is where nn_ct_key has it
_NAT_FLAGS_OFFSET = 52
_NAT_OPEN = NatFlag.SEEN_REPLY | NatFlag.OPENED
_LB_FLOW = struct.Struct("=16sHHIIIBxHH2x")
# bpf/lib/hairpin.h
_V4_PREFIX = bytes(10) + b"\xff\xff"
_HAIRPIN_V4 = _V4_PREFIX + bytes((169, 254, 42, 1))
_HAIRPIN_V6 = b"\x01" + bytes(14) + b"\x01"


def unchanged(value: bytes) -> bytes:
    return value


def never_follows(key: bytes) -> bool:
    """For tables whose entries do not come in pairs."""
    return False


def stands_alone(key: bytes, value: bytes) -> tuple[bytes, ...]:
    """For the same tables."""
    return ()


def keep_present(copied: bytes, present: bytes) -> bytes:
    """For values without a timestamp: keep the entry of the new map, which the new programs use."""
    return present


def state_of_revision(key: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """nn_state from that of a version with a policy revision. nn_ct is shared with the programs of that version: the
    next generation, from which flows are judged again, is higher than every revision in its entries."""
    generation = (int.from_bytes(value[:4], "little") + 1) & 0xFFFFFFFF
    return [(key, struct.pack("=II", generation, generation))]


def ct_recheck(value: bytes) -> bytes:
    """nn_ct_entry with a generation that makes the next packet check policy again. The old programs checked it with
    maps that may be out of date by now."""
    return value[:4] + NEVER_JUDGED.to_bytes(4, "little") + value[8:]


def ct_age(value: bytes) -> int:
    """The time of a flow's last packet (nn_ct_entry.last_seen). It is in seconds of CLOCK_MONOTONIC, not a duration."""
    return int.from_bytes(value[:4], "little")


def ct_lifetime(protocol: int, flags: int) -> int:
    """Seconds without a packet after which an entry of nn_ct expires (nn_ct_lifetime)."""
    answered = flags & CtFlag.SEEN_REPLY
    if protocol != Protocol.TCP:
        return _STREAM if answered else _OTHER
    if flags & CtFlag.RST or flags & _BOTH_FINS == _BOTH_FINS:
        return _TCP_CLOSING
    return _TCP_ESTABLISHED if answered else _TCP_OPENING


def ct_expired(key: bytes, value: bytes, now: int) -> bool:
    """Whether the programs treat this entry of nn_ct as absent. `now`: seconds of CLOCK_MONOTONIC."""
    entry = _CT.unpack(value)
    return now - int(entry[0]) > ct_lifetime(key[_CT_PROTOCOL_OFFSET], entry[5])


def ct_owner(value: bytes) -> tuple[int, bool, int]:
    """Of an nn_ct_entry: the number of its endpoint, whether the flow was answered, and the number of the Service that
    it called, 0: none."""
    entry = _CT.unpack(value)
    return entry[6], bool(entry[5] & CtFlag.SEEN_REPLY), entry[3]


def ct_merged(copied: bytes, present: bytes) -> bytes:
    """Merge two nn_ct_entry of one key: keep the one seen last. If both are of the same connection, combine their
    flags for replies and FINs. RST is not combined, because a later packet clears it (RFC 5961)."""
    one, other = _CT.unpack(copied), _CT.unpack(present)
    newest = one if one[0] > other[0] else other
    if (one[4], one[6], one[7]) != (other[4], other[6], other[7]):
        return _CT.pack(*newest)
    flags = newest[5] | ((one[5] | other[5]) & _CT_STICKY)
    return _CT.pack(*newest[:5], flags, *newest[6:])


def nat_age(value: bytes) -> int:
    """The time of a flow's last packet (nn_nat_entry.last_seen), as in `ct_age`."""
    return int.from_bytes(value[36:40], "little")


def nat_newest(copied: bytes, present: bytes) -> bytes:
    """Of two nn_nat_entry of one key, keep the one used last."""
    return copied if nat_age(copied) > nat_age(present) else present


def nat_expired(key: bytes, value: bytes, now: int) -> bool:
    """Whether a flow of nn_nat has expired, by a half of its client (nn_nat_has_expired)."""
    flags = value[_NAT_FLAGS_OFFSET]
    if flags & _NAT_OPEN != _NAT_OPEN:
        flags &= ~NatFlag.SEEN_REPLY
    return now - nat_age(value) > ct_lifetime(key[_CT_PROTOCOL_OFFSET], flags)


def nat_is_reply(key: bytes) -> bool:
    """Whether it is a half of the backend."""
    return bool(key[_NAT_REPLY_OFFSET] & 1)


def nat_follows(key: bytes) -> bool:
    """Whether the flow's slot is by another half."""
    return key[_NAT_REPLY_OFFSET] != NatHalf.CLIENT


def nat_service_of_node(key: bytes, value: bytes) -> int:
    """The number of the Service, if this is the client's half of a flow from outside (NN_NAT_OF_NODE); else 0."""
    entry = _NAT.unpack(value)
    return int(entry[5]) if key[_NAT_REPLY_OFFSET] == NatHalf.CLIENT and not entry[8] else 0


def nat_other(key: bytes, value: bytes) -> bytes:
    """The key of a flow's other half (nn_nat_other_of)."""
    saddr, daddr, sport, dport = _NAT_ENDS.unpack_from(value)
    last = bytes((key[_CT_PROTOCOL_OFFSET], key[_NAT_REPLY_OFFSET] ^ 1, 0, 0))
    return _NAT_ENDS.pack(daddr, saddr, dport, sport) + last


def nat_others(key: bytes, value: bytes) -> tuple[bytes, ...]:
    """The keys of what is deleted with a flow's first half. The last half of source translation is not found by it, and
    is of no use without the others."""
    other = nat_other(key, value)
    if not value[_NAT_FLAGS_OFFSET] & NatFlag.HAS_SOURCE:
        return (other,)
    last = bytes((key[_CT_PROTOCOL_OFFSET], NatHalf.SOURCE_CLIENT, 0, 0))
    return (other, _NAT_ENDS.pack(*_NAT_ENDS.unpack_from(value)) + last)


def nat_of_lb_flow(key: bytes, value: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Both halves of a flow that an earlier version had in nn_lb_flow: pod and Service -> backend, and the port that
    replaced the pod's own. It had no place for what was answered, so a flow that is open counts as answered."""
    pod, service, pod_port, service_port = _NAT_ENDS.unpack_from(key)
    backend, port, endpoint_id, backend_id, service_id, last_seen, opening, slot, own = _LB_FLOW.unpack(value)
    source = pod
    if backend == pod:
        source = _HAIRPIN_V4 if pod.startswith(_V4_PREFIX) else _HAIRPIN_V6
    flags = 0 if opening else NatFlag.SEEN_REPLY | NatFlag.OPENED
    there = _NAT.pack(
        source, backend, own or pod_port, port, last_seen, service_id, backend_id, slot, endpoint_id, flags
    )
    back = _NAT.pack(service, pod, service_port, pod_port, last_seen, service_id, 0, 0, endpoint_id, 0)
    return (key, there), (nat_other(key, there), back)
