"""The slots of a table (bpf/lib/fair.h): which bucket an entry belongs to, and who pays for it. Works on bytes, because
a hundred thousand entries may be placed at once."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from nodenet.abi.numbers import NatFlag
from nodenet.model import Direction

WAYS = 16
_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_64_BITS = (1 << 64) - 1
_OUTSIDE, _ENDPOINT, _ADDRESS_BITS = 0x80000000, 0x40000000, 0x3FFFFFFF
_V4_PREFIX = bytes(10) + b"\xff\xff"
_KEY = struct.Struct("=4I4IHHB3x")
_ADDRESS = struct.Struct("=4I")
_DIRECTION_OFFSET = 16
_ENDPOINT_ID = slice(18, 20)
_NAT_ENDPOINT_ID = slice(50, 52)
_NAT_FLAGS, _NAT_OPEN = 52, NatFlag.SEEN_REPLY | NatFlag.OPENED
_KEY_SIZE = 40
# lock, padding, tags, owners, keys
_BUCKET = struct.Struct(f"=8x{WAYS}I{WAYS}I{WAYS * _KEY_SIZE}s")

# A key and its value.
Entry = tuple[bytes, bytes]


def flow_number(key: bytes) -> int:
    """nn_flow_number."""
    words: tuple[int, ...] = _KEY.unpack(key)
    number = words[8] << 32 | words[9] << 16 | words[10]
    for pod, remote in zip(words[:4], words[4:8], strict=True):
        number = (number ^ pod) * _GOLDEN_RATIO & _64_BITS
        number = (number ^ number >> 32 ^ remote) * _GOLDEN_RATIO & _64_BITS
        number ^= number >> 32
    return number


def place_of(key: bytes, buckets: int) -> tuple[int, int]:
    """Index of the flow's bucket and its tag there, as nn_fair_claim computes them."""
    number = flow_number(key)
    return (number >> 32) * buckets >> 32, number & 0xFFFFFFFF | 1


def ct_owner(key: bytes, value: bytes) -> int:
    """As nn_ct_owner_of for a flow that the pod opened, or another node's pod. Here every caller is an owner."""
    if value[_DIRECTION_OFFSET] == Direction.EGRESS:
        return _ENDPOINT | int.from_bytes(value[_ENDPOINT_ID], "little")
    return _addr_number(key[16:32]) & _ADDRESS_BITS


def nat_owner(key: bytes, value: bytes) -> int:
    """As nn_nat_owner_of and nn_nat_prove: the pod that called, or the client of an open flow from outside. A pod of
    another node is a client as all others here."""
    endpoint_id = int.from_bytes(value[_NAT_ENDPOINT_ID], "little")
    if endpoint_id:
        return _ENDPOINT | endpoint_id
    if value[_NAT_FLAGS] & _NAT_OPEN != _NAT_OPEN:
        return _OUTSIDE
    client = key[:16] if key.startswith(_V4_PREFIX) else key[:8] + bytes(8)
    return _OUTSIDE | _addr_number(client) & 0xFFFF


def _addr_number(addr: bytes) -> int:
    """nn_addr_number"""
    number = 0
    for word in _ADDRESS.unpack(addr):
        number = (number ^ word) * _GOLDEN_RATIO & _64_BITS
        number ^= number >> 32
    return number


def bucket_of(entries: Iterable[Entry], buckets: int, owner: Callable[[bytes, bytes], int]) -> bytes:
    """nn_fair_bucket with these entries, WAYS at most."""
    known = list(entries)
    free = [0] * (WAYS - len(known))
    tags = [place_of(key, buckets)[1] for key, _ in known]
    owners = [owner(key, value) for key, value in known]
    return _BUCKET.pack(*tags, *free, *owners, *free, b"".join(key for key, _ in known))


def keys_in(bucket: bytes) -> Iterator[tuple[bytes, int]]:
    """Keys and tags of the slots that are in use."""
    fields = _BUCKET.unpack(bucket)
    for slot, tag in enumerate(fields[:WAYS]):
        if tag:
            yield fields[-1][slot * _KEY_SIZE : (slot + 1) * _KEY_SIZE], tag
