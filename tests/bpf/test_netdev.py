"""The programs on uplinks: without Services there they change nothing; with Services, only packets to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from nodenet.bpf import loader
from nodenet.bpf.packet_run import run_packet

from .conftest import TC_OK, Datapath
from .outside import NODE_PORT, UPLINK, Outside, ask, serving
from .test_service_packets import ends

pytestmark = pytest.mark.kernel

PROGRAMS = list(loader.UPLINK_PROGRAMS)


@pytest.fixture(scope="module")
def served(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    yield from serving(bpffs, bpf_cache, "netdev")


FRAMES = st.one_of(
    st.binary(min_size=0, max_size=80).map(lambda data: bytes(Ether(type=0x0800) / Raw(data))),
    st.binary(min_size=0, max_size=80).map(lambda data: bytes(Ether(type=0x86DD) / Raw(data))),
    st.just(bytes(Ether() / ARP())),
    st.binary(min_size=20, max_size=60).map(lambda data: bytes(Ether(type=0x0800) / Raw(b"E" + data))),
)


@pytest.mark.parametrize("program", PROGRAMS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FRAMES)
def test_whatever_comes_goes_on_unchanged(datapath: Datapath, served: Datapath, program: str, frame: bytes) -> None:
    """With and without Services there. No event, and no packet is counted."""
    for one in (datapath, served):
        run = run_packet(one.loaded.programs[program], frame.ljust(60, b"\0"), ingress_ifindex=UPLINK)
        assert (run.verdict, run.packet) == (TC_OK, frame.ljust(60, b"\0"))
        assert one.events() == []


def test_without_services_the_programs_open_no_flow(datapath: Datapath) -> None:
    outside = Outside(datapath, 4)
    outside.serve(outside.near)
    call = outside.call(ask(TCP))
    for program in PROGRAMS:
        run = outside.run(program, call, UPLINK)
        assert (run.verdict, ends(Ether(run.packet)[outside.ip])[2:]) == (TC_OK, (outside.node, NODE_PORT))
    assert not outside.halves()


@pytest.mark.parametrize(
    "frame",
    [
        Ether(dst="02:00:00:00:00:99"),
        Ether(dst="ff:ff:ff:ff:ff:ff"),
        Ether(dst="00:00:00:00:00:00") / Dot1Q(vlan=7),
    ],
    ids=["another-host", "broadcast", "vlan"],
)
def test_frames_that_are_not_for_this_interface(served: Datapath, frame: Ether) -> None:
    outside = Outside(served, 4)
    outside.serve(outside.near)
    packet = bytes(frame / outside.call(ask(TCP)))
    run = run_packet(served.loaded.programs["netdev_ingress"], packet, ingress_ifindex=UPLINK)
    assert (run.verdict, run.packet) == (TC_OK, packet)
    assert not outside.halves()
