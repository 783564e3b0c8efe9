"""kube-proxy's nftables mode: its input for `nft -f -`, one transaction per sync.

The structure follows the project's documentation (KEP-3866 and pkg/proxy/nftables/README.md) and what version 1.36
writes: a map `service-ips` from address, protocol and port to a chain, and a chain per Service port that translates
with one rule over all its endpoints. Only with session affinity has each endpoint a chain of its own, and a set of the
clients that use it. A sync writes only the chains and elements of changed Services.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from nodenet.kubeproxy.iptables import allowed_sources
from nodenet.kubeproxy.model import MARK, Backend, Network, Service, Services, short_hash

_MASQUERADE = f"mark set mark or {MARK}"
# The most letters of a chain's name after its prefix.
_NAME_LENGTH = 240
_SHARED = ("cluster-ips", "hairpin-connections")
_BASE_CHAINS = (
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority -110"),
    ("filter-output-pre-dnat", "type filter hook output priority -110"),
    ("filter-input", "type filter hook input priority 0"),
    ("filter-forward", "type filter hook forward priority 0"),
    ("filter-output", "type filter hook output priority 0"),
    ("nat-prerouting", "type nat hook prerouting priority -100"),
    ("nat-output", "type nat hook output priority -100"),
    ("nat-postrouting", "type nat hook postrouting priority 100"),
)
_CHAINS = (
    "nodeport-endpoints-check",
    "service-endpoints-check",
    "firewall-check",
    "services",
    "masquerading",
    "cluster-ips-check",
    "reject-chain",
)
_JUMPS = (
    ("filter-input", "ct state new jump nodeport-endpoints-check"),
    ("filter-input", "ct state new jump service-endpoints-check"),
    ("filter-forward", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump service-endpoints-check"),
    ("filter-prerouting-pre-dnat", "ct state new jump firewall-check"),
    ("filter-output-pre-dnat", "ct state new jump firewall-check"),
    ("nat-output", "jump services"),
    ("nat-prerouting", "jump services"),
    ("nat-postrouting", "jump masquerading"),
    ("filter-forward", "ct state new jump cluster-ips-check"),
    ("filter-output", "ct state new jump cluster-ips-check"),
)


class Element(NamedTuple):
    """An element of a set or map. `value`: what comes behind the key, "" for a set."""

    container: str
    key: str
    value: str = ""


class _Objects(NamedTuple):
    """What one Service has of its own: chains and their rules, sets and their declaration, elements."""

    chains: dict[str, list[str]]
    sets: dict[str, str]
    elements: list[Element]


def table(network: Network) -> str:
    """The family and name of kube-proxy's table."""
    return f"{_ip(network)} kube-proxy"


def _ip(network: Network) -> str:
    return "ip" if network.version == 4 else "ip6"


def service_chain(service: Service) -> str:
    """service-, eight letters of a hash, and the name that was hashed."""
    return "service-" + _base_name(_name(service))


def local_chain(service: Service) -> str:
    return "local-" + _base_name(_name(service))


def external_chain(service: Service) -> str:
    return "external-" + _base_name(_name(service))


def firewall_chain(service: Service) -> str:
    return "firewall-" + _base_name(_name(service))


def endpoint_chain(service: Service, backend: Backend) -> str:
    return "endpoint-" + _endpoint_name(service, backend)


def affinity_set(service: Service, backend: Backend) -> str:
    return "affinity-" + _endpoint_name(service, backend)


def _name(service: Service) -> str:
    return f"{service.namespace}/{service.name}/{service.protocol}/{service.port_name}"


def _endpoint_name(service: Service, backend: Backend) -> str:
    # Colons are not allowed in names: an IPv6 address is written with dots.
    return _base_name(f"{_name(service)}__{backend.address.replace(':', '.')}/{backend.port}")


@lru_cache(maxsize=4096)
def _base_name(name: str) -> str:
    found = f"{short_hash(name, 8)}-{name}"
    return found if len(found) <= _NAME_LENGTH else found[: _NAME_LENGTH - 3] + "..."


def base(network: Network) -> str:
    """The table with its maps, hooks and fixed rules, without any Service."""
    name = table(network)
    lines = [f'add table {name} {{ comment "rules for kube-proxy" ; }}', f"flush table {name}"]
    lines += [f"add chain {name} {chain} {{ {hook} ; }}" for chain, hook in _BASE_CHAINS]
    lines += [f"add chain {name} {chain}" for chain in _CHAINS]
    lines += [
        f'add {what} {name} {at} {{ type {kind} ; comment "{text}" ; }}' for what, at, kind, text in _sets(network)
    ]
    lines += [f"add rule {name} {chain} {rule}" for chain, rule in (*_JUMPS, *_rules(network))]
    lines += [f"add element {name} nodeport-ips {{ {ip} }}" for ip in network.node_port_ips]
    return "\n".join(lines) + "\n"


def _sets(network: Network) -> Iterator[tuple[str, str, str, str]]:
    """Kind of container, name, type, comment."""
    addr = "ipv4_addr" if network.version == 4 else "ipv6_addr"
    to_port = f"{addr} . inet_proto . inet_service : verdict"
    node_port = "inet_proto . inet_service : verdict"
    yield "set", "hairpin-connections", f"{addr} . {addr} . inet_proto . inet_service", "service hairpin connections"
    yield "set", "cluster-ips", addr, "Active ClusterIPs"
    if network.node_port_ips:
        yield "set", "nodeport-ips", addr, "IPs that accept NodePort traffic"
    yield "map", "no-endpoint-services", to_port, "vmap to drop or reject packets to services with no endpoints"
    words = "vmap to drop or reject packets to service nodeports with no endpoints"
    yield "map", "no-endpoint-nodeports", node_port, words
    yield "map", "firewall-ips", to_port, "destinations that are subject to LoadBalancerSourceRanges"
    yield "map", "service-ips", to_port, "ClusterIP, ExternalIP and LoadBalancer IP traffic"
    yield "map", "service-nodeports", node_port, "NodePort traffic"


def _rules(network: Network) -> Iterator[tuple[str, str]]:
    ip = _ip(network)
    where = f"{ip} daddr . meta l4proto . th dport vmap"
    node = (
        f"{ip} daddr @nodeport-ips"
        if network.node_port_ips
        else f"fib daddr type local {ip} daddr != {network.loopback}"
    )
    hairpin = f"{ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections"
    yield "masquerading", f"mark and {MARK} != 0 mark set mark xor {MARK} masquerade fully-random"
    yield "masquerading", f"ct status dnat {hairpin} masquerade fully-random"
    yield "cluster-ips-check", f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"'
    if network.service_cidr:
        words = 'comment "Drop traffic to unallocated ClusterIPs"'
        yield "cluster-ips-check", f"{ip} daddr {{ {network.service_cidr} }} drop {words}"
    yield "reject-chain", "reject"
    yield "service-endpoints-check", f"{where} @no-endpoint-services"
    yield "nodeport-endpoints-check", f"{node} meta l4proto . th dport vmap @no-endpoint-nodeports"
    yield "firewall-check", f"{where} @firewall-ips"
    words = 'comment "masquerade clusterIP traffic from outside cluster"'
    yield "services", f"{ip} daddr @cluster-ips {ip} saddr != {network.pod_cidr} {_MASQUERADE} {words}"
    yield "services", f"{where} @service-ips"
    yield "services", f"{node} meta l4proto . th dport vmap @service-nodeports"


def render(network: Network, new: Services, old: Services | None = None) -> str:
    """One sync: the base and everything, or with `old` (the Services in the kernel) only the difference."""
    before, after = _changed(network, new, old)
    name = table(network)
    stay, there = set(after.elements), set(before.elements)
    shared = _shared_keys(new)
    lines = [
        f"delete element {name} {one.container} {{ {one.key} }}"
        for one in dict.fromkeys(before.elements)
        if one not in stay and one[:2] not in shared
    ]
    lines += [f"flush chain {name} {chain}" for chain in before.chains]
    # The timeout of a set cannot be changed.
    lines += [f"delete set {name} {one}" for one, what in before.sets.items() if after.sets.get(one) != what]
    lines += [f"add set {name} {one} {{ {what} }}" for one, what in after.sets.items()]
    lines += [f"add chain {name} {chain}" for chain in after.chains]
    lines += [f"add rule {name} {chain} {rule}" for chain, rules in after.chains.items() for rule in rules]
    # Elements must come after the chain to which they refer. nft accepts "add" for an element that exists already, such
    # as a ClusterIP with another port.
    lines += [
        f"add element {name} {one.container} {{ {one.key}{one.value} }}" for one in after.elements if one not in there
    ]
    body = "".join(f"{line}\n" for line in lines)
    return body if old is not None else base(network) + body


def stale_chains(network: Network, new: Services, old: Services) -> str:
    """The second transaction. kube-proxy flushes a chain that is no longer needed and deletes it in a later sync,
    because packets may still be in it."""
    before, after = _changed(network, new, old)
    gone = [chain for chain in before.chains if chain not in after.chains]
    return "".join(f"delete chain {table(network)} {chain}\n" for chain in gone)


def _changed(network: Network, new: Services, old: Services | None) -> tuple[_Objects, _Objects]:
    """What the changed Services had, and what they have now."""
    held = {service_chain(s): s for s in old or ()}
    wanted = {service_chain(s): s for s in new}
    before = [service for name, service in held.items() if wanted.get(name) != service]
    after = [service for name, service in wanted.items() if held.get(name) != service]
    return _objects(network, before), _objects(network, after)


def _objects(network: Network, services: Sequence[Service]) -> _Objects:
    found = _Objects({}, {}, [])
    for service in services:
        found.chains.update(_chains(network, service))
        if service.affinity_seconds:
            addr = "ipv4_addr" if network.version == 4 else "ipv6_addr"
            what = f"type {addr} ; flags dynamic,timeout ; timeout {service.affinity_seconds}s ;"
            found.sets.update({affinity_set(service, backend): what for backend in service.reachable()})
        found.elements.extend(_elements(service))
    return found


def _shared_keys(services: Services) -> Collection[tuple[str, str]]:
    """Elements of the sets in which Services may have an element in common."""
    return {(e.container, e.key) for service in services for e in _elements(service) if e.container in _SHARED}


def _elements(service: Service) -> Iterator[Element]:
    for backend in service.reachable():
        if backend.here:
            key = f"{backend.address} . {backend.address} . {service.protocol} . {backend.port}"
            yield Element("hairpin-connections", key)
    yield Element("cluster-ips", service.cluster_ip)
    refusal = ("drop" if service.backends else "goto reject-chain"), f'comment "{service.full_name}"'
    chain = local_chain(service) if service.internal_local else service_chain(service)
    yield from _address(service, service.cluster_ip, chain if service.internal else "", not service.internal, refusal)
    outside = external_chain(service) if service.backends else ""
    for ip in (*service.external_ips, *service.load_balancer_ips):
        yield from _address(service, ip, outside, not service.external, refusal)
    for ip in service.load_balancer_ips if service.source_ranges else ():
        yield Element("firewall-ips", _key(service, ip), f" : goto {firewall_chain(service)}")
    if service.node_port:
        key = f"{service.protocol} . {service.node_port}"
        if outside:
            yield Element("service-nodeports", key, f" : goto {outside}")
        if not service.external:
            yield Element("no-endpoint-nodeports", key, f" {refusal[1]} : {refusal[0]}")


def _key(service: Service, ip: str) -> str:
    return f"{ip} . {service.protocol} . {service.port}"


def _address(service: Service, ip: str, chain: str, refused: bool, refusal: tuple[str, str]) -> Iterator[Element]:
    if chain:
        yield Element("service-ips", _key(service, ip), f" : goto {chain}")
    if refused:
        yield Element("no-endpoint-services", _key(service, ip), f" {refusal[1]} : {refusal[0]}")


def _chains(network: Network, service: Service) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if service.affinity_seconds:
        for backend in service.reachable():
            found[endpoint_chain(service, backend)] = [
                f"update @{affinity_set(service, backend)} {{ {_ip(network)} saddr }}",
                f"meta l4proto {service.protocol} dnat to {backend}",
            ]
    if service.uses_cluster:
        found[service_chain(service)] = list(_spread(network, service, service.backends))
    if service.uses_local:
        found[local_chain(service)] = list(_spread(network, service, service.local_backends))
    if service.is_external and service.backends:
        found[external_chain(service)] = list(_external(network, service))
    if service.load_balancer_ips and service.source_ranges:
        sources = ", ".join(allowed_sources(network, service))
        found[firewall_chain(service)] = [f"{_ip(network)} saddr != {{ {sources} }} drop"]
    return found


def _external(network: Network, service: Service) -> Iterator[str]:
    """Traffic to a NodePort, an external IP or a load balancer's address. With policy Local, pods of the cluster and
    the node itself use every endpoint, as if they went out to the load balancer and back."""
    if not service.external_local:
        yield f'{_MASQUERADE} comment "masquerade"'
    else:
        every = f"goto {service_chain(service)}"
        yield f'{_ip(network)} saddr {network.pod_cidr} {every} comment "short-circuit pod traffic"'
        yield f'fib saddr type local {_MASQUERADE} comment "masquerade local traffic"'
        yield f'fib saddr type local {every} comment "short-circuit local traffic"'
    if service.external:
        yield f"goto {local_chain(service) if service.external_local else service_chain(service)}"


def _spread(network: Network, service: Service, backends: Sequence[Backend]) -> Iterator[str]:
    count = len(backends)
    if not service.affinity_seconds:
        targets = ", ".join(f"{index} : {b.address} . {b.port}" for index, b in enumerate(backends))
        to = f"dnat {_ip(network)} addr . port to numgen random mod {count} map {{ {targets} }}"
        yield f"meta l4proto {service.protocol} {to}"
        return
    for backend in backends:
        known = f"{_ip(network)} saddr @{affinity_set(service, backend)}"
        yield f"{known} goto {endpoint_chain(service, backend)}"
    targets = ", ".join(f"{index} : goto {endpoint_chain(service, b)}" for index, b in enumerate(backends))
    yield f"numgen random mod {count} vmap {{ {targets} }}"
