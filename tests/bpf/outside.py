"""A node with a NodePort, its pods, other nodes' pods, and clients outside, for the programs on uplinks."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import NatHalf
from nodenet.bpf import loader
from nodenet.bpf.packet_run import PacketRun, run_packet

from .conftest import OTHER_IFINDEX, TC_OK, TEST_IFINDEX, Datapath
from .test_service_packets import PROTOCOLS, TARGET, recomputed

UPLINK = 7
NODE_PORT, CLIENT_PORT = 30080, 40000
SERVICE_ID = 41
SOURCE_PORTS = range(49152, 65536)
HOST, WORLD, REMOTE_NODE, POD, FAR_POD = 1, 2, 6, 2000, 2001
ISN = 0xFFFFFFFE  # of the backend: the numbers behind it wrap
TOLD = b"told"
# Fields of the client's packet that acknowledges a SYN-ACK of `Outside.answer`.
PROOF = {"flags": "A", "ack": (ISN + 1 + len(TOLD)) & 0xFFFFFFFF}
Ends = tuple[str, int, str, int]


def serving(bpffs: Path, bpf_cache: Path, name: str, **config: object) -> Iterator[Datapath]:
    """A datapath whose programs serve uplinks."""
    made = Datapath(bpffs / name, bpf_cache, loader.DatapathConfig(serve_uplinks=True, **config))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


class Outside:
    """Frames are addressed to the loopback, on which BPF_PROG_TEST_RUN runs."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath, self.tables = datapath, datapath.tables
        self.version = version
        self.ip = IP if version == 4 else IPv6
        self.client, self.other, self.node, self.near, self.far, self.vip, self.router = (
            ("203.0.113.9", "203.0.113.10", "192.0.2.1", "10.0.1.1", "10.0.2.2", "10.96.0.10", "198.51.100.1")
            if version == 4
            else (
                "2001:db8:9::9",
                "2001:db8:a::9",
                "2001:db8::1",
                "fd00:1::1",
                "fd00:2::2",
                "fd00:96::10",
                "2001:db8:ff::1",
            )
        )
        datapath.reset()
        datapath.endpoint(self.near, POD, number=1, ifindex=OTHER_IFINDEX)
        datapath.identity(self.far, FAR_POD)
        datapath.identity(self.node, HOST)
        self.tables["nn_source_addr"].update(abi.U32(version), abi.AddressKey(ip_address(self.node)))
        self.numbers: dict[str, int] = {}

    def serve(
        self,
        *backends: str,
        address: str | None = None,
        port: int = NODE_PORT,
        number: int = SERVICE_ID,
        flags: int = 0,
        affinity_seconds: int = 0,
        cluster_ip: bool = False,
    ) -> None:
        """TCP and UDP of this address and port have these backends now."""
        addr = ip_address(address or self.node)
        refuse = abi.AddressFlag.REFUSE_UNSERVED if cluster_ip else abi.AddressFlag(0)
        self.tables["nn_service_addr"].update(abi.AddressKey(addr), abi.U32(refuse))
        self.tables["nn_revnat"].update(abi.U32(number), abi.AddressPort(addr, port, 6))
        for protocol in PROTOCOLS:
            for slot, backend in enumerate(backends, 1):
                key = self.backend_id(backend, protocol)
                value = abi.AddressPort(ip_address(backend), TARGET, protocol)
                self.tables["nn_backend"].update(abi.U32(key), value)
                self.tables["nn_member"].update(abi.MemberKey(number, key), value)
                self.tables["nn_member"].update(abi.MemberKey(number | abi.MEMBER_AFFINITY, key), value)
                entry = abi.FrontendEntry(key, number, 0)
                self.tables["nn_frontend"].update(abi.FrontendKey(addr, port, protocol, slot), entry)
            master = abi.FrontendEntry(0, number, len(backends), flags, 77, affinity_seconds)
            self.tables["nn_frontend"].update(abi.FrontendKey(addr, port, protocol, 0), master)

    def backend_id(self, backend: str, protocol: int) -> int:
        return self.numbers.setdefault(backend, len(self.numbers) + 1) * 100 + protocol

    def call(self, layer: Packet, client: str | None = None, to: str | None = None) -> Packet:
        return self.ip(src=client or self.client, dst=to or self.node) / layer

    def run(self, program: str, packet: Packet, ingress: int) -> PacketRun:
        frame = bytes(Ether(src="02:00:00:00:00:aa", dst="00:00:00:00:00:00") / packet)
        return run_packet(self.datapath.loaded.programs[program], frame, ingress_ifindex=ingress)

    def enters(self, packet: Packet, verdict: int = TC_OK) -> Packet:
        """What becomes of a packet that enters the node; its checksums are right."""
        return self._through("netdev_ingress", packet, verdict, TEST_IFINDEX)

    def leaves(self, packet: Packet, verdict: int = TC_OK, ingress: int = UPLINK) -> Packet:
        """What becomes of a packet that leaves the node. It came by the interface `ingress`; 0: the node sends it."""
        return self._through("netdev_egress", packet, verdict, ingress)

    def _through(self, program: str, packet: Packet, verdict: int, ingress: int) -> Packet:
        run = self.run(program, packet, ingress)
        assert run.verdict == verdict
        result = Ether(run.packet)[self.ip]
        if verdict == TC_OK:
            assert bytes(result) == recomputed(result)
        return result

    def answer(self, layer: type[Packet], to: Ends, **fields: object) -> Packet:
        """What the receiver of a packet with these ends sends back."""
        if fields.get("flags") == "SA":
            fields.setdefault("seq", ISN)
        return self.ip(src=to[2], dst=to[0]) / layer(sport=to[3], dport=to[1], **fields) / Raw(TOLD)

    def halves(self) -> dict[NatHalf, Ends]:
        """What becomes of the packets of the one flow, by half."""
        found: dict[NatHalf, Ends] = {}
        for key, entry in self.tables["nn_nat"].items():
            assert key.reply not in found
            found[NatHalf(key.reply)] = (str(entry.saddr), entry.sport, str(entry.daddr), entry.dport)
        return found


def ask(layer: type[Packet], sport: int = CLIENT_PORT, dport: int = NODE_PORT) -> Packet:
    """The first packet of a flow."""
    return layer(sport=sport, dport=dport) / Raw(b"ask") if layer is UDP else TCP(sport=sport, dport=dport, flags="S")
