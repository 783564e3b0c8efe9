"""Hubble's FlowFilter: which flows a reader wants. Compiled once per request into one test per flow. Pure.

Inside one filter every field that is set must match, and the values of a field are alternatives; filters of a list are
alternatives. Fields about things that this datapath does not record (HTTP, DNS, trace ids, SNAT) match no flow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from nodenet.flow import decode, selector
from nodenet.flow.types import Flow, Party, ServiceName, Workload
from nodenet.model import IPAddress, Protocol

Test = Callable[[Flow], bool]
DEFAULT_NAMESPACE = "default"


class FilterError(ValueError):
    """A filter that cannot be followed: `field` and what is wrong with its value."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name


class EventTypeMatch(NamedTuple):
    """An event type, and a sub-type when `match_sub_type`; type 0 is any."""

    type: int
    match_sub_type: bool = False
    sub_type: int = 0


class InterfaceMatch(NamedTuple):
    """A network interface by number, name, or both."""

    ifindex: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """The fields of flow.FlowFilter under the same names; empty ones do not count. TCP flags are bits of the header."""

    uuid: tuple[str, ...] = ()
    source_ip: tuple[str, ...] = ()
    source_ip_xlated: tuple[str, ...] = ()
    source_pod: tuple[str, ...] = ()
    source_fqdn: tuple[str, ...] = ()
    source_label: tuple[str, ...] = ()
    source_service: tuple[str, ...] = ()
    source_workload: tuple[Workload, ...] = ()
    source_cluster_name: tuple[str, ...] = ()
    destination_ip: tuple[str, ...] = ()
    destination_pod: tuple[str, ...] = ()
    destination_fqdn: tuple[str, ...] = ()
    destination_label: tuple[str, ...] = ()
    destination_service: tuple[str, ...] = ()
    destination_workload: tuple[Workload, ...] = ()
    destination_cluster_name: tuple[str, ...] = ()
    traffic_direction: tuple[int, ...] = ()
    verdict: tuple[int, ...] = ()
    drop_reason_desc: tuple[int, ...] = ()
    interface: tuple[InterfaceMatch, ...] = ()
    event_type: tuple[EventTypeMatch, ...] = ()
    http_status_code: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    source_port: tuple[str, ...] = ()
    destination_port: tuple[str, ...] = ()
    reply: tuple[bool, ...] = ()
    dns_query: tuple[str, ...] = ()
    source_identity: tuple[int, ...] = ()
    destination_identity: tuple[int, ...] = ()
    http_method: tuple[str, ...] = ()
    http_path: tuple[str, ...] = ()
    http_url: tuple[str, ...] = ()
    http_header: tuple[tuple[str, str], ...] = ()
    tcp_flags: tuple[int, ...] = ()
    node_name: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    ip_version: tuple[int, ...] = ()
    trace_id: tuple[str, ...] = ()
    ip_trace_id: tuple[int, ...] = ()
    encrypted: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """What all flows of one agent share: its node, its cluster, and how it makes their uuids."""

    node_name: str = ""
    cluster_name: str = "default"
    node_labels: tuple[str, ...] = ()
    # The first 20 digits of every uuid; the flow's number makes the rest.
    uuid_prefix: str = "0" * 20

    def uuid(self, number: int) -> str:
        """A flow's uuid: unique for as long as the prefix is."""
        digits = self.uuid_prefix + f"{number & 0xFFFFFFFFFFFF:012x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def compile_filters(whitelist: Sequence[FlowFilter], blacklist: Sequence[FlowFilter], origin: Origin) -> Test | None:
    """One test for both lists; None: everything is wanted. Raises FilterError naming the field."""
    wanted = [_compile(one, origin) for one in whitelist]
    unwanted = [_compile(one, origin) for one in blacklist]
    if not wanted and not unwanted:
        return None

    def test(flow: Flow) -> bool:
        if wanted and not any(one(flow) for one in wanted):
            return False
        return not any(one(flow) for one in unwanted)

    return test


def _compile(one: FlowFilter, origin: Origin) -> Test:
    tests: list[Test] = []
    for field_spec in fields(one):
        values = getattr(one, field_spec.name)
        if values:
            try:
                tests.append(_BUILDERS[field_spec.name](values, origin))
            except ValueError as error:
                raise FilterError(field_spec.name, str(error)) from error
    if len(tests) == 1:
        return tests[0]
    return lambda flow: all(test(flow) for test in tests)


Builder = Callable[[Any, Origin], Test]


def _never(_values: Any, _origin: Origin) -> Test:
    return lambda _flow: False


def _one_of(get: Callable[[Flow], object]) -> Builder:
    def build(values: Iterable[object], _origin: Origin) -> Test:
        wanted = frozenset(values)
        return lambda flow: get(flow) in wanted

    return build


def _ip(get: Callable[[Flow], IPAddress]) -> Builder:
    def build(values: Iterable[str], _origin: Origin) -> Test:
        hosts = frozenset(ip_address(value) for value in values if "/" not in value)
        networks = tuple(ip_network(value, strict=False) for value in values if "/" in value)

        def test(flow: Flow) -> bool:
            if not flow.event.ip_version:
                return False
            address = get(flow)
            return address in hosts or any(address in network for network in networks)

        return test

    return build


def _named(get: Callable[[Flow], tuple[str, str]]) -> Builder:
    """ "namespace/prefix"; no slash: namespace default; "namespace/": all of it; "/prefix": in every namespace."""

    def build(values: Iterable[str], _origin: Origin) -> Test:
        wanted = [_namespaced(value) for value in values]

        def test(flow: Flow) -> bool:
            namespace, name = get(flow)
            if not name and not namespace:
                return False
            return any((not ns or ns == namespace) and name.startswith(prefix) for ns, prefix in wanted)

        return test

    return build


def _namespaced(value: str) -> tuple[str, str]:
    namespace, slash, name = value.partition("/")
    if not slash:
        namespace, name = DEFAULT_NAMESPACE, value
    if not value or "/" in name:
        raise ValueError(f"expected [namespace/]name, got {value!r}")
    return namespace, name


def _label(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Iterable[str], _origin: Origin) -> Test:
        tests = [selector.parse(value) for value in values]
        return lambda flow: any(test(get(flow).labels) for test in tests)

    return build


def _workload(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Sequence[Workload], _origin: Origin) -> Test:
        def test(flow: Flow) -> bool:
            return any(
                (not want.name or want.name == have.name) and (not want.kind or want.kind == have.kind)
                for have in get(flow).workloads
                for want in values
            )

        return test

    return build


def _cluster(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Iterable[str], origin: Origin) -> Test:
        matches = any(_glob(value).fullmatch(origin.cluster_name) for value in values)
        return lambda flow: matches and bool(get(flow).pod)

    return build


def _port(get: Callable[[Flow], int]) -> Builder:
    def build(values: Iterable[str], _origin: Origin) -> Test:
        wanted = frozenset(_port_number(value) for value in values)
        return lambda flow: flow.event.protocol in _WITH_PORTS and get(flow) in wanted

    return build


def _port_number(value: str) -> int:
    if not value.isdecimal() or not 0 <= int(value) <= 0xFFFF:
        raise ValueError(f"expected a port 0-65535, got {value!r}")
    return int(value)


def _protocol(values: Iterable[str], _origin: Origin) -> Test:
    wanted: set[int] = set()
    for value in values:
        known = _PROTOCOLS.get(value.lower())
        if known is None:
            raise ValueError(f"unknown protocol {value!r} (known: {', '.join(_PROTOCOLS)})")
        wanted.update(known)
    return lambda flow: flow.event.protocol in wanted


def _reply(values: Iterable[bool], _origin: Origin) -> Test:
    """Like Hubble: a drop whose side is not known counts as not a reply; other such flows match neither."""
    wanted = frozenset(values)

    def test(flow: Flow) -> bool:
        reply = decode.is_reply(flow.event)
        if reply is None:
            return bool(flow.event.reason) and False in wanted
        return reply in wanted

    return test


def _tcp_flags(values: Sequence[int], _origin: Origin) -> Test:
    """All flags of one value must be set; others may be."""

    def test(flow: Flow) -> bool:
        event = flow.event
        return event.protocol == Protocol.TCP and any(event.tcp_flags & want == want for want in values)

    return test


def _event_type(values: Sequence[EventTypeMatch], _origin: Origin) -> Test:
    def test(flow: Flow) -> bool:
        kind, sub_type = decode.event_type(flow.event)
        return any(
            (not want.type or want.type == kind) and (not want.match_sub_type or want.sub_type == sub_type)
            for want in values
        )

    return test


def _node_name(values: Iterable[str], origin: Origin) -> Test:
    """ "node" or "cluster/node", each with `*`; an empty half matches everything."""
    matches = False
    for value in values:
        cluster, slash, node = value.rpartition("/")
        if not value or (slash and "/" in cluster):
            raise ValueError(f"expected [cluster/]node, got {value!r}")
        own = origin.node_name.rpartition("/")[2]
        in_cluster = not cluster or _glob(cluster).fullmatch(origin.cluster_name)
        matches = matches or bool(in_cluster and (not node or _glob(node).fullmatch(own)))
    return lambda _flow: matches


def _glob(pattern: str) -> re.Pattern[str]:
    if not re.fullmatch(r"[A-Za-z0-9_.*-]+", pattern):
        raise ValueError(f"expected a name with letters, digits, '-', '.' and '*', got {pattern!r}")
    return re.compile(re.escape(pattern).replace(r"\*", r"[-.0-9A-Za-z_]*"))


def _node_labels(values: Iterable[str], origin: Origin) -> Test:
    tests = [selector.parse(value) for value in values]
    labels = tuple(f"k8s:{label}" for label in origin.node_labels)
    matches = any(test(labels) for test in tests)
    return lambda _flow: matches


def _ip_version(values: Iterable[int], _origin: Origin) -> Test:
    """Hubble numbers them 1 (IPv4), 2 (IPv6), 0 (not IP)."""
    wanted = frozenset({1: 4, 2: 6}.get(value, 0) for value in values)
    return lambda flow: flow.event.ip_version in wanted


def _interface(values: Sequence[InterfaceMatch], _origin: Origin) -> Test:
    """By number: an event does not carry the name."""
    wanted = frozenset(value.ifindex for value in values if value.ifindex and not value.name)
    return lambda flow: flow.event.ifindex in wanted


def _uuid(values: Iterable[str], origin: Origin) -> Test:
    wanted = frozenset(value.lower() for value in values)
    return lambda flow: origin.uuid(flow.number) in wanted


def _encrypted(values: Iterable[bool], _origin: Origin) -> Test:
    matches = False in frozenset(values)
    return lambda _flow: matches


def _source(flow: Flow) -> Party:
    return flow.source


def _destination(flow: Flow) -> Party:
    return flow.destination


def _service_name(service: ServiceName | None) -> tuple[str, str]:
    return service if service is not None else ("", "")


_WITH_PORTS = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})
# Layer 7 names are known and match nothing here.
_PROTOCOLS: dict[str, tuple[int, ...]] = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "sctp": (Protocol.SCTP,),
    "icmp": (Protocol.ICMP, Protocol.ICMPV6),
    "icmpv4": (Protocol.ICMP,),
    "icmpv6": (Protocol.ICMPV6,),
    "dns": (),
    "http": (),
    "kafka": (),
}
_BUILDERS: dict[str, Builder] = {
    "uuid": _uuid,
    "source_ip": _ip(lambda flow: flow.event.saddr),
    "source_ip_xlated": _never,
    "source_pod": _named(lambda flow: (flow.source.namespace, flow.source.pod)),
    "source_fqdn": _never,
    "source_label": _label(_source),
    "source_service": _named(lambda flow: _service_name(flow.source_service)),
    "source_workload": _workload(_source),
    "source_cluster_name": _cluster(_source),
    "destination_ip": _ip(lambda flow: flow.event.daddr),
    "destination_pod": _named(lambda flow: (flow.destination.namespace, flow.destination.pod)),
    "destination_fqdn": _never,
    "destination_label": _label(_destination),
    "destination_service": _named(lambda flow: _service_name(flow.destination_service)),
    "destination_workload": _workload(_destination),
    "destination_cluster_name": _cluster(_destination),
    "traffic_direction": _one_of(lambda flow: decode.traffic_direction(flow.event)),
    "verdict": _one_of(lambda flow: flow.verdict),
    "drop_reason_desc": _one_of(lambda flow: decode.drop_reason(flow.event)),
    "interface": _interface,
    "event_type": _event_type,
    "http_status_code": _never,
    "protocol": _protocol,
    "source_port": _port(lambda flow: flow.event.sport),
    "destination_port": _port(lambda flow: flow.event.dport),
    "reply": _reply,
    "dns_query": _never,
    "source_identity": _one_of(lambda flow: flow.source.identity),
    "destination_identity": _one_of(lambda flow: flow.destination.identity),
    "http_method": _never,
    "http_path": _never,
    "http_url": _never,
    "http_header": _never,
    "tcp_flags": _tcp_flags,
    "node_name": _node_name,
    "node_labels": _node_labels,
    "ip_version": _ip_version,
    "trace_id": _never,
    "ip_trace_id": _never,
    "encrypted": _encrypted,
}
