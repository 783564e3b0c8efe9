"""What happens to entries of a map that another one replaces: how the bytes of its records change on the way.

Functions of bytes, not of records: half a million entries are copied at a time.
"""

from __future__ import annotations

import struct

from nodenet.abi.numbers import CtFlag

# A policy revision that is never in force for long: it is odd, and 2 ** 31 changes away from the first one.
NEVER_JUDGED = 0xFFFFFFFF

_CT = struct.Struct("=IIIIBBHI")
_CT_STICKY = CtFlag.SEEN_REPLY | CtFlag.FIN_FORWARD | CtFlag.FIN_REPLY
_LB_FLOW_LAST_SEEN = struct.Struct("=16sHHIII")


def unchanged(value: bytes) -> bytes:
    return value


def keep_present(copied: bytes, present: bytes) -> bytes:
    """Both maps have the entry and neither value says when it was written: the one that the new programs use stays."""
    return present


def ct_judged_again(value: bytes) -> bytes:
    """nn_ct_entry whose flow is judged at its next packet. The old programs judged it by maps that are perhaps not
    kept up to date any more."""
    return value[:4] + NEVER_JUDGED.to_bytes(4, "little") + value[8:]


def ct_age(value: bytes) -> int:
    """nn_ct_entry.last_seen, seconds of CLOCK_MONOTONIC."""
    return int.from_bytes(value[:4], "little")


def ct_merged(copied: bytes, present: bytes) -> bytes:
    """Two nn_ct_entry of one key: the one that was seen last. If they are of one connection, it keeps what either has
    seen of replies and FINs. A RST is not kept: a later packet takes it back (RFC 5961)."""
    one, other = _CT.unpack(copied), _CT.unpack(present)
    newest = one if one[0] > other[0] else other
    if (one[4], one[6], one[7]) != (other[4], other[6], other[7]):
        return _CT.pack(*newest)
    flags = newest[5] | ((one[5] | other[5]) & _CT_STICKY)
    return _CT.pack(*newest[:5], flags, *newest[6:])


def lb_flow_age(value: bytes) -> int:
    """nn_lb_flow_entry.last_seen, seconds of CLOCK_MONOTONIC."""
    return int(_LB_FLOW_LAST_SEEN.unpack_from(value)[5])


def lb_flow_newest(copied: bytes, present: bytes) -> bytes:
    """Two nn_lb_flow_entry of one key: the one that was used last."""
    return copied if lb_flow_age(copied) > lb_flow_age(present) else present
