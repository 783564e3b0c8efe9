"""Checks the tc programs packet by packet with BPF_PROG_TEST_RUN. A small part of tests/bpf, but without scapy, whose
import takes seconds in a virtual machine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from nodenet import abi
from nodenet.bpf.packet_run import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, run_packet
from nodenet.bpf.tables import BpfTable
from nodenet.model import Direction

Check = Callable[[str, str, Callable[[], None]], None]
# Addresses and ports: source, destination.
Ends = tuple[str, str, int, int]

# BPF_PROG_TEST_RUN runs on the loopback device. Another interface number represents a second local pod.
_LOOPBACK, _OTHER = 1, 4242
_TC_OK, _TC_SHOT, _TC_REDIRECT = TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
_ETHERNET = 14
_TCP, _UDP, _FRAGMENT = 6, 17, 44
_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
# Destination and source MAC of the endpoints below.
_MACS = bytes.fromhex("0200000000bb020000000001")
_POD, _REMOTE, _LOCAL = 60001, 60002, 60003
_ADDRESSES = {4: ("10.201.0.1", "10.202.0.2", "10.201.0.3"), 6: ("fd01::1", "fd02::2", "fd01::3")}
# Two Services, of which the pod itself is the backend of the second, and the source address for such a connection of
# the pod to itself.
_SERVICES = {4: ("10.203.0.1", "10.203.0.2", "169.254.42.1"), 6: ("fd03::1", "fd03::2", "100::1")}
# A client outside, and the node.
_OUTSIDE = {4: ("10.204.0.1", "10.205.0.1"), 6: ("fd04::1", "fd05::1")}
_SERVICE_PORT = 8000


def frame(source: str, target: str, protocol: int, payload: bytes, identification: int = 0, fragment: int = 0) -> bytes:
    """An Ethernet frame with an IPv4 or IPv6 packet. `fragment`: IPv4's field of flags and offset. It has no checksums,
    because the programs do not check them."""
    saddr, daddr = ip_address(source), ip_address(target)
    if saddr.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return _MACS + b"\x86\xdd" + head + saddr.packed + daddr.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identification, fragment, 64, protocol, 0)
    return _MACS + b"\x08\x00" + head + saddr.packed + daddr.packed + payload


def tcp(sport: int, dport: int, flags: int = _SYN) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, flags, 64240, 0, 0)


def udp(sport: int, dport: int) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8, 0)


def ends(packet: bytes) -> Ends:
    """Addresses and ports of a frame with the structure that `frame` makes."""
    header = 20 if packet[12:14] == b"\x08\x00" else 40
    size = 4 if header == 20 else 16
    at = _ETHERNET + header
    addresses = packet[at - 2 * size : at]
    saddr, daddr = ip_address(addresses[:size]), ip_address(addresses[size:])
    return (str(saddr), str(daddr), *struct.unpack("!HH", packet[at : at + 4]))


def arp(sender: str) -> bytes:
    """An ARP request (RFC 826) from `sender`."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + _MACS[6:] + ip_address(sender).packed + bytes(10)
    return _MACS + b"\x08\x06" + body


class _Pods:
    """One isolated pod on the loopback, one remote peer to which it may connect on TCP 80, and one more local pod."""

    def __init__(self, programs: Mapping[str, int], tables: Mapping[str, BpfTable], version: int) -> None:
        self.programs, self.tables = programs, tables
        self.pod, self.remote, self.local = _ADDRESSES[version]
        both = abi.EndpointFlag.ISOLATED_INGRESS | abi.EndpointFlag.ISOLATED_EGRESS
        self._endpoint(self.pod, _POD, _LOOPBACK, both)
        self._endpoint(self.local, _LOCAL, _OTHER, 0)
        self._identity(self.remote, _REMOTE)
        key = abi.PolicyKey(abi.POLICY_BITS_PROTOCOL + 16, _POD, _REMOTE, Direction.EGRESS, _TCP, 80)
        tables["nn_policy"].update(key, abi.always(abi.Rule.allow(7)))
        wide = abi.PolicyKey(abi.POLICY_BITS_DIRECTION, _POD, _LOCAL, Direction.EGRESS, 0, 0)
        tables["nn_policy"].update(wide, abi.always(abi.Rule.allow(8)))
        self.service, self.own_service, self.nobody = _SERVICES[version]
        self._serve(self.service, 60000 + version, self.remote)
        self._serve(self.own_service, 60100 + version, self.pod)
        self.client, self.node = _OUTSIDE[version]
        tables["nn_source_addr"].update(abi.U32(version), abi.AddressKey(ip_address(self.node)))

    def _serve(self, service: str, number: int, backend: str) -> None:
        """Add a Service with one TCP port and one backend, which listens on port 80. `number` identifies both."""
        tables, address = self.tables, ip_address(service)
        tables["nn_backend"].update(abi.U32(number), abi.AddressPort(ip_address(backend), 80, _TCP))
        tables["nn_revnat"].update(abi.U32(number), abi.AddressPort(address, _SERVICE_PORT, _TCP))
        for slot, entry in ((1, abi.FrontendEntry(number, number, 0)), (0, abi.FrontendEntry(0, number, 1))):
            tables["nn_frontend"].update(abi.FrontendKey(address, _SERVICE_PORT, _TCP, slot), entry)
        tables["nn_service_addr"].update(abi.AddressKey(address), abi.U32(abi.AddressFlag.REFUSE_UNSERVED))

    def _endpoint(self, address: str, identity: int, ifindex: int, flags: int) -> None:
        entry = abi.always(abi.EndpointEntry(ifindex, identity, identity & 0xFFFF, flags, "02:00:00:00:00:01"))
        self.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
        self._identity(address, identity)

    def _identity(self, address: str, identity: int) -> None:
        self.tables["nn_ipcache"].update(abi.LpmKey.host(ip_address(address)), abi.always(abi.U32(identity)))

    def expect(self, program: str, packet: bytes, verdict: int) -> None:
        got = run_packet(self.programs[program], packet).verdict
        assert got == verdict, f"{program}: verdict {got}, expected {verdict}"

    def becomes(self, program: str, packet: bytes, verdict: int, wanted: bytes) -> None:
        """Check verdict and packet of a run. `wanted`: the expected frame; checksums are not compared."""
        run = run_packet(self.programs[program], packet)
        assert run.verdict == verdict, f"{program}: verdict {run.verdict}, expected {verdict}"
        assert ends(run.packet) == ends(wanted), f"{program}: {ends(run.packet)}, expected {ends(wanted)}"

    def crosses(self, program: str, sent: Ends, wanted: Ends, flags: int = _SYN) -> None:
        """Check a TCP packet on an uplink: its addresses and ports, before and after."""
        saddr, daddr, sport, dport = sent
        # The MAC of the loopback.
        packet = bytes(6) + frame(saddr, daddr, _TCP, tcp(sport, dport, flags))[6:]
        self.becomes(program, packet, _TC_OK, frame(wanted[0], wanted[1], _TCP, tcp(*wanted[2:])))

    def source_port(self) -> int:
        """The port that replaces that of the client outside."""
        for key, _ in list(self.tables["nn_nat"].items()):
            if key.reply == abi.NatHalf.SOURCE_REPLY and str(key.daddr) == self.node:
                return int(key.dport)
        raise AssertionError("no port replaces that of the client outside")

    def out(self, protocol: int, payload: bytes, verdict: int, **fields: int) -> None:
        self.expect("endpoint_egress", frame(self.pod, self.remote, protocol, payload, **fields), verdict)

    def back(self, protocol: int, payload: bytes, verdict: int) -> None:
        self.expect("endpoint_ingress", frame(self.remote, self.pod, protocol, payload), verdict)


def check_packets(
    programs: Mapping[str, int], tables: Mapping[str, BpfTable], check: Check, *, redirect_peer: bool = True
) -> None:
    """Run all packet checks, with map entries of its own. `redirect_peer`: the configuration of the programs."""
    for version in (4, 6):
        pods = _Pods(programs, tables, version)
        for name, function in _cases(pods, version, redirect_peer).items():
            check("packets", f"{name} ipv{version}", function)


def _cases(pods: _Pods, version: int, redirect_peer: bool) -> dict[str, Callable[[], None]]:
    local = _TC_REDIRECT if redirect_peer else _TC_OK

    def tracked() -> None:
        pods.out(_TCP, tcp(40000, 80), _TC_OK)
        pods.back(_TCP, tcp(80, 40000, _SYN_ACK), _TC_OK)
        pods.out(_TCP, tcp(40000, 80, _ACK), _TC_OK)

    def service() -> None:
        out = frame(pods.pod, pods.service, _TCP, tcp(40003, _SERVICE_PORT))
        pods.becomes("endpoint_egress", out, _TC_OK, frame(pods.pod, pods.remote, _TCP, tcp(40003, 80)))
        back = frame(pods.remote, pods.pod, _TCP, tcp(80, 40003, _SYN_ACK))
        answer = frame(pods.service, pods.pod, _TCP, tcp(_SERVICE_PORT, 40003))
        pods.becomes("endpoint_ingress", back, _TC_OK, answer)

    def own_service() -> None:
        out = frame(pods.pod, pods.own_service, _TCP, tcp(40004, _SERVICE_PORT))
        pods.becomes("endpoint_egress", out, _TC_REDIRECT, frame(pods.nobody, pods.pod, _TCP, tcp(40004, 80)))
        back = frame(pods.pod, pods.nobody, _TCP, tcp(80, 40004, _SYN_ACK))
        answer = frame(pods.own_service, pods.pod, _TCP, tcp(_SERVICE_PORT, 40004))
        pods.becomes("endpoint_egress", back, _TC_REDIRECT, answer)

    def from_outside() -> None:
        for service, backend, port in ((pods.service, pods.remote, 40010), (pods.own_service, pods.pod, 40011)):
            inner = (pods.client, backend, port, 80)
            pods.crosses("netdev_ingress", (pods.client, service, port, _SERVICE_PORT), inner)
            answer = (backend, pods.client, 80, port)
            if backend == pods.remote:
                pods.crosses("netdev_ingress", (backend, pods.node, 80, pods.source_port()), answer, _SYN_ACK)
            pods.crosses("netdev_egress", answer, (service, pods.client, _SERVICE_PORT, port), _SYN_ACK)

    cases: dict[str, Callable[[], None]] = {
        "service from outside": from_outside,
        "service by packet": service,
        "own service by packet": own_service,
        "unserved port by packet": lambda: pods.expect(
            "endpoint_egress", frame(pods.pod, pods.service, _TCP, tcp(40005, 81)), _TC_REDIRECT
        ),
        "allowed and its reply": tracked,
        "denied port": lambda: pods.out(_TCP, tcp(40000, 81), _TC_SHOT),
        "denied protocol": lambda: pods.out(_UDP, udp(40000, 80), _TC_SHOT),
        "denied ingress": lambda: pods.back(_TCP, tcp(40000, 9999), _TC_SHOT),
        "foreign source": lambda: pods.expect(
            "endpoint_egress", frame(pods.remote, pods.local, _TCP, tcp(40000, 80)), _TC_SHOT
        ),
        "same node": lambda: pods.expect("endpoint_egress", frame(pods.pod, pods.local, _UDP, udp(40000, 53)), local),
        "not for this pod": lambda: pods.expect(
            "endpoint_ingress", frame(pods.remote, pods.local, _TCP, tcp(40000, 80)), _TC_SHOT
        ),
        "cut short": lambda: pods.out(_TCP, tcp(40000, 80)[:3], _TC_SHOT),
    }
    whole = tcp(40001, 80) + bytes(4)  # fragments are cut at multiples of 8
    if version == 4:
        more, last = 0x2000, 0x0003
        fragments: dict[str, Any] = {
            "first fragment": lambda: pods.out(_TCP, whole, _TC_OK, identification=9, fragment=more),
            "later fragment": lambda: pods.out(_TCP, bytes(16), _TC_OK, identification=9, fragment=last),
            "hidden flags": lambda: pods.out(_TCP, whole[:16], _TC_SHOT, identification=11, fragment=more),
            "unknown fragment": lambda: pods.out(_TCP, bytes(16), _TC_SHOT, identification=10, fragment=last),
            "arp": lambda: pods.expect("endpoint_egress", arp(pods.pod), _TC_OK),
            "foreign arp": lambda: pods.expect("endpoint_egress", arp(pods.remote), _TC_SHOT),
        }
        return cases | fragments
    first, later = struct.pack("!BBHI", _TCP, 0, 1, 77), struct.pack("!BBHI", _TCP, 0, 24, 77)
    return cases | {
        "first fragment": lambda: pods.out(_FRAGMENT, first + whole, _TC_OK),
        "later fragment": lambda: pods.out(_FRAGMENT, later + bytes(16), _TC_OK),
        "hidden flags": lambda: pods.out(_FRAGMENT, first + whole[:16], _TC_SHOT),
        "extension header": lambda: pods.out(60, struct.pack("!BB6x", _TCP, 0) + tcp(40002, 80), _TC_OK),
    }
