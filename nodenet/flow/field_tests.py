"""Builds the test of each field of a FlowFilter from its values, with an upper bound of comparisons. Pure.

Values are put into sets and dicts where possible, so that the cost of a test does not grow with their number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from nodenet.flow import glob, selector
from nodenet.flow.filter import EventTypeMatch, InterfaceMatch, Origin
from nodenet.flow.limits import shown
from nodenet.flow.types import Flow, Party, ServiceName, Workload
from nodenet.model import IPAddress, Protocol

Test = Callable[[Flow], bool]
DEFAULT_NAMESPACE = "default"
# IP protocol numbers (IANA).
_IGMP, _VRRP = 2, 112


@dataclass(frozen=True, slots=True)
class FieldTest:
    """Tests whether a flow has one of the wanted values. `steps`: the largest number of comparisons for one flow."""

    test: Test
    steps: int = 1


Builder = Callable[[Any, Origin], FieldTest]


def _always(answer: bool) -> FieldTest:
    return FieldTest(lambda _flow: answer)


def _never(_values: Any, _origin: Origin) -> FieldTest:
    return _always(False)


def _one_of(get: Callable[[Flow], object]) -> Builder:
    def build(values: Iterable[object], _origin: Origin) -> FieldTest:
        wanted = frozenset(values)
        return FieldTest(lambda flow: get(flow) in wanted)

    return build


def _ip(get: Callable[[Flow], IPAddress | None]) -> Builder:
    """Networks are grouped by prefix length: one look-up per length."""

    def build(values: Sequence[str], _origin: Origin) -> FieldTest:
        hosts = frozenset(_parsed(ip_address, value) for value in values if "/" not in value)
        networks: dict[int, dict[int, set[int]]] = {4: defaultdict(set), 6: defaultdict(set)}
        for network in (_parsed(_network, value) for value in values if "/" in value):
            shift = network.max_prefixlen - network.prefixlen
            networks[network.version][shift].add(int(network.network_address) >> shift)

        def test(flow: Flow) -> bool:
            address = get(flow)
            if address is None:
                return False
            if address in hosts:
                return True
            number = int(address)
            return any(number >> shift in known for shift, known in networks[address.version].items())

        return FieldTest(test, 1 + max(len(networks[4]), len(networks[6])))

    return build


def _network(value: str) -> Any:
    return ip_network(value, strict=False)


def _parsed(parse: Callable[[str], Any], value: str) -> Any:
    """Parse a value. Raises ValueError with a short message."""
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)} does not appear to be an address or a CIDR") from error


def _named(get: Callable[[Flow], tuple[str, str]]) -> Builder:
    """ "namespace/prefix". Without a slash the namespace is default; "namespace/" matches everything in it; "/prefix"
    matches in every namespace."""

    def build(values: Iterable[str], _origin: Origin) -> FieldTest:
        grouped: dict[str, set[str]] = defaultdict(set)
        for value in values:
            namespace, prefix = _namespaced(value)
            grouped[namespace].add(prefix)
        anywhere = tuple(sorted(grouped.pop("", ())))
        prefixes = {namespace: (*anywhere, *sorted(found)) for namespace, found in grouped.items()}

        def test(flow: Flow) -> bool:
            namespace, name = get(flow)
            if not name and not namespace:
                return False
            # str.startswith with a tuple tests all prefixes in one call.
            return name.startswith(prefixes.get(namespace, anywhere))

        return FieldTest(test, 1 + max(map(len, prefixes.values()), default=len(anywhere)))

    return build


def _namespaced(value: str) -> tuple[str, str]:
    namespace, slash, name = value.partition("/")
    if not slash:
        namespace, name = DEFAULT_NAMESPACE, value
    if not value or "/" in name:
        raise ValueError(f"expected [namespace/]name, got {shown(value)}")
    return namespace, name


def _selectors(values: Iterable[str]) -> tuple[list[selector.Selector], int]:
    """The different selectors, and the total number of their requirements."""
    found = [selector.parse(value) for value in dict.fromkeys(values)]
    return found, sum(len(one.requirements) for one in found)


def _label(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Iterable[str], _origin: Origin) -> FieldTest:
        tests, steps = _selectors(values)
        return FieldTest(lambda flow: any(test(get(flow).labels) for test in tests), steps)

    return build


def _workload(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Sequence[Workload], _origin: Origin) -> FieldTest:
        wanted = frozenset((value.kind, value.name) for value in values)

        def test(flow: Flow) -> bool:
            return any(not wanted.isdisjoint(_matching_values(have.kind, have.name)) for have in get(flow).workloads)

        return FieldTest(test, 4)

    return build


def _matching_values(kind: str, name: str) -> tuple[tuple[str, str], ...]:
    """All filter values that match this workload. An empty kind or name matches any."""
    return (kind, name), (kind, ""), ("", name), ("", "")


def _cluster(get: Callable[[Flow], Party]) -> Builder:
    def build(values: Sequence[str], origin: Origin) -> FieldTest:
        # Hubble compares: it knows no patterns here.
        matches = origin.cluster_name in values
        return FieldTest(lambda flow: matches and bool(get(flow).pod))

    return build


def _glob(pattern: str, name: str) -> bool:
    glob.check(pattern)
    return glob.matches(pattern, name)


def _port(get: Callable[[Flow], int | None]) -> Builder:
    def build(values: Iterable[str], _origin: Origin) -> FieldTest:
        wanted = frozenset(_port_number(value) for value in values)
        return FieldTest(lambda flow: get(flow) in wanted)

    return build


def _port_number(value: str) -> int:
    if not value.isdecimal() or not 0 <= int(value) <= 0xFFFF:
        raise ValueError(f"expected a port 0-65535, got {shown(value)}")
    return int(value)


def _protocol(values: Iterable[str], _origin: Origin) -> FieldTest:
    wanted: set[int] = set()
    for value in values:
        known = _PROTOCOLS.get(value.lower())
        if known is None:
            raise ValueError(f"unknown protocol {shown(value)} (known: {', '.join(_PROTOCOLS)})")
        wanted.update(known)
    return FieldTest(lambda flow: flow.protocol in wanted)


def _reply(values: Iterable[bool], _origin: Origin) -> FieldTest:
    """As in Hubble: if `is_reply` is unknown, a drop counts as not a reply, and other flows never match."""
    wanted = frozenset(values)

    def test(flow: Flow) -> bool:
        if flow.is_reply is None:
            return flow.drop_reason is not None and False in wanted
        return flow.is_reply in wanted

    return FieldTest(test)


def _tcp_flags(values: Iterable[int], _origin: Origin) -> FieldTest:
    """All flags of one value must be set; other flags do not matter. Flags are the bits of one byte, so there are at
    most 256 values."""
    wanted = frozenset(values)

    def test(flow: Flow) -> bool:
        flags = flow.tcp_flags
        return flags is not None and any(flags & want == want for want in wanted)

    return FieldTest(test, len(wanted))


def _event_type(values: Iterable[EventTypeMatch], _origin: Origin) -> FieldTest:
    """Type 0 matches any type. None stands for a sub-type that is not compared."""
    wanted = frozenset((value.type, value.sub_type if value.match_sub_type else None) for value in values)

    def test(flow: Flow) -> bool:
        kind, sub_type = flow.event_type, flow.sub_type
        return not wanted.isdisjoint(((kind, sub_type), (kind, None), (0, sub_type), (0, None)))

    return FieldTest(test, 4)


def _node_name(values: Iterable[str], origin: Origin) -> FieldTest:
    """ "node" or "cluster/node"; both may contain `*`, and an empty one matches everything."""
    # Parse every value, also after one that matches, so that each invalid value is an error.
    answers = [_on_node(value, origin.node_name, origin.cluster_name) for value in values]
    return _always(any(answers))


def _on_node(value: str, node_name: str, cluster_name: str) -> bool:
    cluster, slash, node = value.rpartition("/")
    if not value or (slash and "/" in cluster):
        raise ValueError(f"expected [cluster/]node, got {shown(value)}")
    in_cluster = not cluster or _glob(cluster, cluster_name)
    return (not node or _glob(node, node_name)) and in_cluster


def _node_labels(values: Iterable[str], origin: Origin) -> FieldTest:
    tests, _ = _selectors(values)
    labels = tuple(f"k8s:{label}" for label in origin.node_labels)
    return _always(any(test(labels) for test in tests))


def _ip_version(values: Iterable[int], _origin: Origin) -> FieldTest:
    """Hubble's numbers: 1 (IPv4), 2 (IPv6), 0 (not IP)."""
    wanted = frozenset({1: 4, 2: 6}.get(value) for value in values)
    return FieldTest(lambda flow: flow.ip_version in wanted)


def _interface(values: Iterable[InterfaceMatch], _origin: Origin) -> FieldTest:
    """Only by index: flows do not have an interface name, so a value with a name never matches."""
    wanted = frozenset(value.ifindex for value in values if value.ifindex and not value.name)
    return FieldTest(lambda flow: flow.ifindex in wanted)


def _uuid(values: Iterable[str], origin: Origin) -> FieldTest:
    wanted = frozenset(value.lower() for value in values)
    return FieldTest(lambda flow: origin.uuid(flow.number) in wanted)


def _encrypted(values: Iterable[bool], _origin: Origin) -> FieldTest:
    return _always(False in frozenset(values))


def _source(flow: Flow) -> Party:
    return flow.source


def _destination(flow: Flow) -> Party:
    return flow.destination


def _service_name(service: ServiceName | None) -> tuple[str, str]:
    return service if service is not None else ("", "")


# Layer 7 protocols are valid but match no flow.
_PROTOCOLS: dict[str, tuple[int, ...]] = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "sctp": (Protocol.SCTP,),
    "icmp": (Protocol.ICMP, Protocol.ICMPV6),
    "icmpv4": (Protocol.ICMP,),
    "icmpv6": (Protocol.ICMPV6,),
    "igmp": (_IGMP,),
    "vrrp": (_VRRP,),
    "dns": (),
    "http": (),
    "kafka": (),
}
BUILDERS: dict[str, Builder] = {
    "uuid": _uuid,
    "source_ip": _ip(lambda flow: flow.source_ip),
    "source_ip_xlated": _never,
    "source_pod": _named(lambda flow: (flow.source.namespace, flow.source.pod)),
    "source_fqdn": _never,
    "source_label": _label(_source),
    "source_service": _named(lambda flow: _service_name(flow.source_service)),
    "source_workload": _workload(_source),
    "source_cluster_name": _cluster(_source),
    "destination_ip": _ip(lambda flow: flow.destination_ip),
    "destination_pod": _named(lambda flow: (flow.destination.namespace, flow.destination.pod)),
    "destination_fqdn": _never,
    "destination_label": _label(_destination),
    "destination_service": _named(lambda flow: _service_name(flow.destination_service)),
    "destination_workload": _workload(_destination),
    "destination_cluster_name": _cluster(_destination),
    "traffic_direction": _one_of(lambda flow: flow.direction or 0),
    "verdict": _one_of(lambda flow: flow.verdict),
    "drop_reason_desc": _one_of(lambda flow: flow.drop_reason or 0),
    "interface": _interface,
    "event_type": _event_type,
    "http_status_code": _never,
    "protocol": _protocol,
    "source_port": _port(lambda flow: flow.source_port),
    "destination_port": _port(lambda flow: flow.destination_port),
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
