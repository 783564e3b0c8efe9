"""Attachments and their pods -> nn_endpoint."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nodenet.abi import AddressKey, EndpointEntry, EndpointVersions, always
from nodenet.compile.endpoints import compile_endpoints
from nodenet.endpoint import AttachmentKey
from nodenet.model import Endpoint, ObjectRef

IPS = (ip_address("10.0.1.5"), ip_address("fd00:1::5"))


@pytest.mark.parametrize(
    ("netns_id", "netns"),
    [(None, 0), (0, 1), (41, 42), (0xFFFE, 0xFFFF), (0xFFFF, 0), (1 << 30, 0)],
)
def test_the_number_of_the_namespace_is_written_where_it_is_known_and_fits(netns_id: int | None, netns: int) -> None:
    endpoint = Endpoint(
        1, "c1", "eth0", "/run/netns/c1", "veth1", 11, "02:00:00:00:00:01", IPS, ObjectRef("a", "b"), netns_id=netns_id
    )
    table = compile_endpoints({AttachmentKey("c1", "eth0"): endpoint}, {}, {}, {}).endpoints
    entries = [table[AddressKey(ip)] for ip in IPS]
    assert all(isinstance(entry, EndpointEntry) and entry.netns == netns for entry in entries)
    # What the kernel holds is the same record.
    assert [EndpointVersions.unpack(always(entry).pack()).at(0) for entry in entries] == entries
