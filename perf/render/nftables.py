"""kube-proxy's nftables mode: its input for `nft -f -`, one transaction per sync.

The structure follows the project's documentation (KEP-3866 and pkg/proxy/nftables/README.md): a map `service-ips` from
address, protocol and port to a verdict, a chain per Service port that distributes with numgen, and a chain per endpoint
that translates. A sync writes only the chains and elements of changed Services.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from perf.render import short_hash
from perf.services import CLUSTER_CIDR, SERVICE_CIDR, Backend, Service, ServiceModel

TABLE = "ip kube-proxy"
MARK = "0x4000"

_TUPLE = "ipv4_addr . inet_proto . inet_service"
_SETS = (
    ("set", "cluster-ips", "ipv4_addr", "Active ClusterIPs"),
    ("set", "nodeport-ips", "ipv4_addr", "IPs that accept NodePort traffic"),
    ("map", "firewall-ips", f"{_TUPLE} : verdict", "destinations that are subject to LoadBalancerSourceRanges"),
    ("map", "no-endpoint-nodeports", "inet_proto . inet_service : verdict", "service nodeports with no endpoints"),
    ("map", "no-endpoint-services", f"{_TUPLE} : verdict", "services with no endpoints"),
    ("map", "service-ips", f"{_TUPLE} : verdict", "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
    ("map", "service-nodeports", "inet_proto . inet_service : verdict", "NodePort traffic"),
)
_BASE_CHAINS = (
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority -110"),
    ("filter-output-pre-dnat", "type filter hook output priority -110"),
    ("filter-forward", "type filter hook forward priority 0"),
    ("filter-input", "type filter hook input priority 0"),
    ("filter-output", "type filter hook output priority 0"),
    ("nat-output", "type nat hook output priority -100"),
    ("nat-postrouting", "type nat hook postrouting priority 100"),
    ("nat-prerouting", "type nat hook prerouting priority -100"),
)
_CHAINS = (
    "cluster-ips-check",
    "firewall-check",
    "mark-for-masquerade",
    "masquerading",
    "nodeport-endpoints-check",
    "reject-chain",
    "services",
    "service-endpoints-check",
)
_WHERE = "ip daddr . meta l4proto . th dport vmap"
_RULES = (
    ("cluster-ips-check", "ip daddr @cluster-ips reject"),
    ("cluster-ips-check", f"ip daddr {{ {SERVICE_CIDR} }} drop"),
    ("filter-prerouting-pre-dnat", "ct state new jump firewall-check"),
    ("filter-output-pre-dnat", "ct state new jump firewall-check"),
    ("filter-forward", "ct state new jump service-endpoints-check"),
    ("filter-forward", "ct state new jump cluster-ips-check"),
    ("filter-input", "ct state new jump nodeport-endpoints-check"),
    ("filter-input", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump cluster-ips-check"),
    ("firewall-check", f"{_WHERE} @firewall-ips"),
    ("mark-for-masquerade", f"mark set mark or {MARK}"),
    ("masquerading", f"mark and {MARK} == 0 return"),
    ("masquerading", f"mark set mark xor {MARK}"),
    ("masquerading", "masquerade fully-random"),
    ("nat-output", "jump services"),
    ("nat-postrouting", "jump masquerading"),
    ("nat-prerouting", "jump services"),
    ("nodeport-endpoints-check", "ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"),
    ("reject-chain", "reject"),
    ("services", f"{_WHERE} @service-ips"),
    ("services", "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports"),
    ("service-endpoints-check", f"{_WHERE} @no-endpoint-services"),
)


def service_chain(service: Service) -> str:
    """service-, eight letters of a hash, and the name that was hashed."""
    name = f"{service.namespace}/{service.name}/{service.protocol}/{service.port_name}"
    return f"service-{short_hash(name, 8)}-{name}"


def endpoint_chain(service: Service, backend: Backend) -> str:
    name = (
        f"{service.namespace}/{service.name}/{service.protocol}/{service.port_name}__{backend.address}/{backend.port}"
    )
    return f"endpoint-{short_hash(name, 8)}-{name}"


def base() -> str:
    """The table with its maps, hooks and fixed rules, without any Service."""
    lines = [f'add table {TABLE} {{ comment "rules for kube-proxy" ; }}', f"flush table {TABLE}"]
    lines += [f'add {what} {TABLE} {name} {{ type {kind} ; comment "{text}" ; }}' for what, name, kind, text in _SETS]
    lines += [f"add chain {TABLE} {name} {{ {hook} ; }}" for name, hook in _BASE_CHAINS]
    lines += [f"add chain {TABLE} {name}" for name in _CHAINS]
    lines += [f"add rule {TABLE} {chain} {rule}" for chain, rule in _RULES]
    return "\n".join(lines) + "\n"


def render(new: ServiceModel, old: ServiceModel | None = None) -> str:
    """One sync: the base and everything, or with `old` (the model in the kernel) only the difference."""
    held = {service_chain(s): s for s in old.services} if old else {}
    wanted = {service_chain(s): s for s in new.services}
    addresses = {service.cluster_ip for service in new.services}
    lines: list[str] = []
    for name, service in held.items():
        if wanted.get(name) != service:
            lines += _remove_elements(service, wanted.get(name), addresses)
    for name, service in wanted.items():
        if held.get(name) != service:
            lines += _service(service, held.get(name))
    for name, service in held.items():
        lines += _stale(name, service, wanted.get(name))
    body = "".join(f"{line}\n" for line in lines)
    return body if old else base() + body


def stale_chains(new: ServiceModel, old: ServiceModel) -> str:
    """The second transaction. kube-proxy flushes a chain that is no longer needed and deletes it in a later sync,
    because packets may still be in it."""
    wanted = {service_chain(s): s for s in new.services}
    lines = []
    for name, service in {service_chain(s): s for s in old.services}.items():
        lines += [line.replace("flush chain", "delete chain", 1) for line in _stale(name, service, wanted.get(name))]
    return "".join(f"{line}\n" for line in lines)


def _service(service: Service, held: Service | None) -> Iterator[str]:
    chain = service_chain(service)
    if service.backends:
        yield from _spread(service, held, chain)
    # Elements must come after the chain to which they refer.
    yield from _add_elements(service, held)


def _spread(service: Service, held: Service | None, chain: str) -> Iterator[str]:
    old = set(held.backends) if held else set()
    yield f"add chain {TABLE} {chain}"
    if old:
        yield f"flush chain {TABLE} {chain}"
    for backend in service.backends:
        if backend not in old:
            yield from _endpoint(service, backend)
    yield (
        f"add rule {TABLE} {chain} ip daddr {service.cluster_ip} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade"
    )
    targets = ", ".join(f"{i} : goto {endpoint_chain(service, b)}" for i, b in enumerate(service.backends))
    yield f"add rule {TABLE} {chain} numgen random mod {len(service.backends)} vmap {{ {targets} }}"


def _endpoint(service: Service, backend: Backend) -> Iterator[str]:
    chain = endpoint_chain(service, backend)
    yield f"add chain {TABLE} {chain}"
    yield f"add rule {TABLE} {chain} ip saddr {backend.address} jump mark-for-masquerade"
    yield f"add rule {TABLE} {chain} meta l4proto {service.protocol} dnat to {backend}"


def _elements(service: Service) -> tuple[tuple[str, str, str], ...]:
    """The elements of a Service: (set or map, key, value with its colon)."""
    key = f"{service.cluster_ip} . {service.protocol} . {service.port}"
    if service.backends:
        return (
            ("cluster-ips", service.cluster_ip, ""),
            ("service-ips", key, f" : goto {service_chain(service)}"),
        )
    return (
        ("cluster-ips", service.cluster_ip, ""),
        ("no-endpoint-services", key, " : goto reject-chain"),
    )


def _add_elements(service: Service, held: Service | None) -> Iterator[str]:
    there = set(_elements(held)) if held else set()
    for element in _elements(service):
        if element not in there:
            name, key, value = element
            # nft accepts "add" for an address that another port of the same Service has already added.
            yield f"add element {TABLE} {name} {{ {key}{value} }}"


def _remove_elements(service: Service, wanted: Service | None, addresses: Collection[str]) -> Iterator[str]:
    """Delete elements. `addresses` are still in use, for example by another port of the same Service."""
    stay = set(_elements(wanted)) if wanted else set()
    for element in _elements(service):
        name, key, value = element
        if element not in stay and not (name == "cluster-ips" and key in addresses):
            yield f"delete element {TABLE} {name} {{ {key}{value} }}"


def _stale(name: str, service: Service, wanted: Service | None) -> Iterator[str]:
    if wanted == service:
        return
    if service.backends and not (wanted and wanted.backends):
        yield f"flush chain {TABLE} {name}"
    stay = set(wanted.backends) if wanted else set()
    for backend in service.backends:
        if backend not in stay:
            yield f"flush chain {TABLE} {endpoint_chain(service, backend)}"
