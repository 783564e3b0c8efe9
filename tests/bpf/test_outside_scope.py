"""Which entry of a frontend serves traffic from outside, at every state that may exist between two writes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from nodenet import abi
from nodenet.abi import FrontendFlag

from .conftest import Datapath
from .outside import CLIENT_PORT, NODE_PORT, SERVICE_ID, Outside, ask, serving

pytestmark = pytest.mark.kernel

LED = FrontendFlag.HAS_EXTERNAL | FrontendFlag.KEEP_SOURCE


@pytest.fixture(scope="module")
def served(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    yield from serving(bpffs, bpf_cache, "scopes")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def outside(request: pytest.FixtureRequest, served: Datapath) -> Outside:
    return Outside(served, request.param)


def external(outside: Outside, *backends: str) -> None:
    """The EXTERNAL entry has these backends, in slots of its own."""
    scope, table = abi.FrontendScope.EXTERNAL, outside.tables["nn_frontend"]
    for protocol in (6, 17):
        for slot, backend in enumerate(backends, 1):
            key = abi.FrontendKey(ip_address(outside.node), NODE_PORT, protocol, slot, scope)
            table.update(key, abi.FrontendEntry(outside.backend_id(backend, protocol), SERVICE_ID, 0))
        master = abi.FrontendKey(ip_address(outside.node), NODE_PORT, protocol, 0, scope)
        table.update(master, abi.FrontendEntry(0, SERVICE_ID, len(backends), int(FrontendFlag.KEEP_SOURCE)))


def reached(outside: Outside, layer: type[Packet], calls: int = 12) -> set[str]:
    return {str(outside.enters(outside.call(ask(layer, CLIENT_PORT + n))).dst) for n in range(calls)}


@pytest.mark.parametrize("layer", [TCP, UDP])
def test_the_flag_leads_to_the_external_entry(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near, outside.far)
    external(outside, outside.near)
    assert reached(outside, layer) == {outside.near, outside.far}, "it is complete before the flag leads to it"


@pytest.mark.parametrize("layer", [TCP, UDP])
def test_with_the_flag_it_is_used(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near, outside.far, flags=LED)
    external(outside, outside.near)
    assert reached(outside, layer) == {outside.near}


@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_program_that_read_the_flag_before_it_went_uses_the_internal_entry(
    outside: Outside, layer: type[Packet]
) -> None:
    """The EXTERNAL entry was deleted between its two lookups."""
    outside.serve(outside.near, outside.far, flags=LED)
    assert reached(outside, layer) == {outside.near, outside.far}


@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_host_port_of_the_loopback_is_never_open_to_the_outside(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near, flags=FrontendFlag.NODE_ONLY)
    assert reached(outside, layer, 1) == {outside.node}, "the packet goes on as it is"
