"""Kernels on which a program may be put aside for another one on its CPU (PREEMPT_RT): two never share a context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import DropReason
from nodenet.bpf import build, libbpf, loader
from nodenet.model import Direction

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, Datapath
from .test_abi import Btf

pytestmark = pytest.mark.kernel

POD, NEAR, FAR = "10.0.1.1", "10.0.1.9", "10.0.2.2"
BUSY = abi.MetricsKey(DropReason.INVALID_TC_BUFFER, Direction.EGRESS)


class Contexts:
    """nn_scratch: the number of programs that hold each CPU's context."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.fd = libbpf.obj_get(str(path))
        btf = Btf(build.build_all(cache)["endpoint"])
        found = btf.struct("nn_context")
        assert found
        self.size, members = found
        self.users = members["users"].offset
        btf.close()
        self.cpus = libbpf.lib().libbpf_num_possible_cpus()

    def close(self) -> None:
        os.close(self.fd)

    def read(self) -> bytes:
        value = ctypes.create_string_buffer(self.size * self.cpus)
        libbpf.check(libbpf.lib().bpf_map_lookup_elem(self.fd, bytes(4), value), "nn_scratch")
        return value.raw

    def held(self) -> set[int]:
        raw, at = self.read(), self.users
        return {int.from_bytes(raw[cpu * self.size + at :][:4], "little") for cpu in range(self.cpus)}

    def hold(self, number: int) -> None:
        """As if programs had been put aside on every CPU, in the middle of their packets."""
        one = bytearray(b"\x5a" * self.size)
        one[self.users : self.users + 4] = number.to_bytes(4, "little")
        libbpf.check(libbpf.lib().bpf_map_update_elem(self.fd, bytes(4), bytes(one) * self.cpus, 0), "nn_scratch")


@pytest.fixture(scope="module")
def preemptible(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    datapath = Datapath(bpffs / "preemptible", bpf_cache, loader.DatapathConfig(preemptible=True))
    try:
        yield datapath
    finally:
        datapath.close()


@pytest.fixture
def contexts(preemptible: Datapath, bpf_cache: Path) -> Iterator[Contexts]:
    preemptible.reset()
    preemptible.endpoint(POD, 1000, number=1)
    preemptible.endpoint(NEAR, 2000, number=2, ifindex=OTHER_IFINDEX)
    contexts = Contexts(preemptible.pins.map("nn_scratch"), bpf_cache)
    contexts.hold(0)
    yield contexts
    contexts.close()


def call(target: str, source: str = POD) -> Packet:
    return IP(src=source, dst=target) / TCP(sport=40000, dport=80, flags="S")


def test_every_way_out_gives_the_context_back(preemptible: Datapath, contexts: Contexts) -> None:
    arp = ARP(op=2, hwsrc=POD_MAC, psrc=POD, pdst=FAR)
    for packet, verdict in (
        (call(FAR), TC_OK),
        (call(NEAR), TC_REDIRECT),
        (call(FAR, source=FAR), TC_SHOT),
        (IP(src=POD, dst=FAR, proto=6) / Raw(b"x"), TC_SHOT),
        (arp, TC_OK),
    ):
        assert preemptible.sent(packet) == verdict
        assert contexts.held() == {0}
    for packet, verdict in ((call(POD, source=FAR), TC_OK), (call(FAR, source=POD), TC_SHOT), (arp, TC_OK)):
        assert preemptible.received(packet) == verdict
        assert contexts.held() == {0}


def test_a_packet_that_comes_between_is_dropped_and_counted(preemptible: Datapath, contexts: Contexts) -> None:
    contexts.hold(1)
    before = contexts.read()
    assert preemptible.sent(call(FAR)) == TC_SHOT
    assert preemptible.received(call(POD, source=FAR)) == TC_SHOT
    assert contexts.read() == before  # the other packet's, untouched
    assert sum(entry.packets for entry in preemptible.tables["nn_metrics"].get(BUSY)) == 1
    contexts.hold(0)
    assert preemptible.sent(call(FAR)) == TC_OK


def test_other_kernels_pay_nothing(datapath: Datapath, bpf_cache: Path) -> None:
    """Nobody looks at the number there."""
    datapath.endpoint(POD, 1000, number=1)
    contexts = Contexts(datapath.pins.map("nn_scratch"), bpf_cache)
    contexts.hold(1)
    assert datapath.sent(call(FAR)) == TC_OK
    assert contexts.held() == {1}
    contexts.hold(0)
    contexts.close()


@pytest.mark.parametrize(
    ("version", "preemptible"),
    [
        ("#1 SMP PREEMPT_RT Debian 6.18.9-1 (2026-02-07)", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.48-1 (2025-09-20)", False),
        ("#1 SMP Debian 5.10.237-1 (2025-05-19)", False),
    ],
)
def test_the_kernel_tells(monkeypatch: pytest.MonkeyPatch, version: str, preemptible: bool) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "node", "6", version, "x86_64")))
    assert loader.DatapathConfig().preemptible is preemptible
    # The fifth switch of struct nn_config.
    assert loader.DatapathConfig().pack()[4] == preemptible
