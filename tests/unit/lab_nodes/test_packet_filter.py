"""The packets that the filters drop, found by interpreting their instructions as the kernel does."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.errors import BadInputError
from nodenet.lab import packet_filter
from nodenet.model import IPAddress

NET_OFF = 0xFFF00000


def dropped(program: bytes, source: IPAddress) -> bool:
    """The verdict on a packet from `source`: the instructions used here, and nothing that leaves the program."""
    header = bytes(12 if source.version == 4 else 8) + source.packed + bytes(16)
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("!I", header, k - NET_OFF)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x15:
            at += yes if accumulator == k else no
        else:
            assert operation == 0x06
            return bool(k == 0)


V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda p: ip_network((p[0], p[1]), strict=False))
V6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    lambda p: ip_network((IPv6Address(p[0]), p[1]), strict=False)
)


@given(st.lists(V4 | V6, max_size=6), st.data())
def test_exactly_what_comes_from_the_networks_is_lost(networks: list, data: st.DataObject) -> None:
    strange = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address)
    inside = [st.integers(int(n[0]), int(n[-1])).map(type(n[0])) for n in networks]
    source = data.draw(st.one_of(strange, *inside))
    program = packet_filter.drop_from(networks, source.version)
    assert dropped(program, source) == any(source in network for network in networks)


def test_all_and_none() -> None:
    assert dropped(packet_filter.drop_all(), IPv4Address("10.0.0.1"))
    assert not dropped(packet_filter.drop_from([], 4), IPv4Address("10.0.0.1"))


def test_more_than_the_kernel_takes_is_refused_with_what_to_do() -> None:
    networks = [ip_network(f"fd00::{i:x}/128") for i in range(600)]
    with pytest.raises(BadInputError, match="too many nodes") as caught:
        packet_filter.drop_from(networks, 6)
    assert "--node" in caught.value.hint
