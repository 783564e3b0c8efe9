"""The summary of a flow, which Hubble's clients print but expect from the server. Pure."""

from __future__ import annotations

from nodenet.flow.types import Flow, Icmp
from nodenet.model import Protocol

# In the order of Hubble's clients.
TCP_FLAGS = (("SYN", 2), ("ACK", 16), ("RST", 4), ("FIN", 1), ("PSH", 8), ("URG", 32), ("ECE", 64), ("CWR", 128))
# RFC 792 and RFC 4443; the names are those of common packet printers.
_ICMP4 = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    5: "Redirect",
    8: "EchoRequest",
    11: "TimeExceeded",
    12: "ParameterProblem",
}
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
}
NOT_IP = "not IP"
_NAMES = {int(Protocol.UDP): "UDP", int(Protocol.SCTP): "SCTP"}


def summary(flow: Flow) -> str:
    """The text in parentheses at the end of Hubble's compact line. Empty if the protocol is unknown."""
    if flow.protocol is None:
        return NOT_IP if flow.source_mac is not None and flow.ip_version is None else ""
    return transport(flow.protocol, flow.tcp_flags, flow.icmp)


def transport(protocol: int, tcp_flags: int | None, icmp: Icmp | None) -> str:
    """The protocol with its TCP flags or ICMP type."""
    if protocol == Protocol.TCP:
        flags = ", ".join(name for name, bit in TCP_FLAGS if tcp_flags and tcp_flags & bit)
        return f"TCP Flags: {flags}" if flags else "TCP"
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return _icmp(protocol == Protocol.ICMPV6, icmp)
    return _NAMES.get(protocol) or f"IP protocol {protocol}"


def _icmp(six: bool, icmp: Icmp | None) -> str:
    name = "ICMPv6" if six else "ICMPv4"
    if icmp is None:
        return name
    known = (_ICMP6 if six else _ICMP4).get(icmp.type)
    return f"{name} {known or f'type {icmp.type} code {icmp.code}'}"
