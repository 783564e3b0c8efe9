"""kube-proxy's iptables mode: its input for `iptables-restore --noflush --counters`, or ip6tables-restore.

The structure follows the project's documentation ("Virtual IPs and Service Proxies") and what it writes. KUBE-SERVICES
has a rule for each address of a Service port. KUBE-SVC-* distributes over the endpoints of traffic policy Cluster and
KUBE-SVL-* over those of Local, with the statistic match; KUBE-EXT-* decides between them for traffic from outside,
KUBE-FW-* checks source ranges, KUBE-SEP-* marks hairpin traffic and translates. Since 1.26 a sync writes KUBE-SERVICES
completely, but other chains only for changed Services.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network

from nodenet.kubeproxy.model import MARK, Backend, Network, Service, Services, short_hash

# Jumps from the built-in chains, created once: (table, chain, rule). kube-proxy inserts them with `iptables -I`.
_PORTALS = '-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_EXTERNAL = (
    '-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" '
    "-j KUBE-EXTERNAL-SERVICES"
)
_FIREWALL = '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
JUMPS: tuple[tuple[str, str, str], ...] = (
    ("filter", "INPUT", _EXTERNAL),
    ("filter", "FORWARD", _EXTERNAL),
    ("filter", "INPUT", '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS'),
    ("filter", "FORWARD", _PORTALS),
    ("filter", "OUTPUT", _PORTALS),
    ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
    ("filter", "INPUT", _FIREWALL),
    ("filter", "OUTPUT", _FIREWALL),
    ("filter", "FORWARD", _FIREWALL),
    ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
)
# With NodePorts on the loopback.
_LOCALHOST_JUMPS = (("filter", "INPUT", "-j KUBE-FIREWALL"), ("filter", "OUTPUT", "-j KUBE-FIREWALL"))
_FILTER_CHAINS = (
    "KUBE-NODEPORTS",
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
)
_NAT_CHAINS = ("KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")

_LOCALNET = (
    '-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
_FILTER_RULES = (
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    f'-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {MARK}/{MARK} -j ACCEPT',
    '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" '
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)
_NAT_RULES = (
    f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN",
    f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}",
    '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}",
)
_NODEPORTS_LAST = (
    "-A KUBE-SERVICES -m comment "
    '--comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
)
# The chains of one Service and their rules.
_Chains = dict[str, list[str]]


def _hash(service: Service, what: str = "") -> str:
    return short_hash(service.full_name + service.protocol + what, 16)


def service_chain(service: Service) -> str:
    """KUBE-SVC- and 16 letters of a hash of the ServicePortName and the protocol."""
    return "KUBE-SVC-" + _hash(service)


def local_chain(service: Service) -> str:
    return "KUBE-SVL-" + _hash(service)


def external_chain(service: Service) -> str:
    return "KUBE-EXT-" + _hash(service)


def firewall_chain(service: Service) -> str:
    return "KUBE-FW-" + _hash(service)


def endpoint_chain(service: Service, backend: Backend) -> str:
    return "KUBE-SEP-" + _hash(service, str(backend))


def jumps(network: Network) -> str:
    """The chains and the jumps from the built-in chains, for the first `iptables-restore --noflush`."""
    wanted = (*JUMPS, *(_LOCALHOST_JUMPS if network.localhost_node_ports else ()))
    lines: list[str] = []
    for table, chains in (("filter", _filter_chains(network)), ("nat", _NAT_CHAINS)):
        lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains)]
        lines += [f"-A {chain} {rule}" for where, chain, rule in wanted if where == table]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def render(network: Network, new: Services, old: Services | None = None) -> str:
    """One sync: everything, or with `old` (the Services in the kernel) only the chains of changed Services."""
    held = {service_chain(s): s for s in old or ()}
    wanted = {service_chain(s): s for s in new}
    chains: _Chains = {}
    for name, service in wanted.items():
        if held.get(name) != service:
            chains |= _chains(network, service)
    gone: dict[str, None] = {}
    for name, service in held.items():
        if wanted.get(name) != service:
            gone.update(dict.fromkeys(chain for chain in _chains(network, service) if chain not in chains))
    return "\n".join([*_filter_table(network, new), *_nat_table(network, new, chains, gone)]) + "\n"


def _filter_chains(network: Network) -> tuple[str, ...]:
    return (*_FILTER_CHAINS, *(("KUBE-FIREWALL",) if network.localhost_node_ports else ()))


def _filter_table(network: Network, services: Services) -> Iterator[str]:
    yield "*filter"
    yield from (f":{chain} - [0:0]" for chain in _filter_chains(network))
    for service in services:
        yield from _refusals(network, service)
    if network.localhost_node_ports:
        yield _LOCALNET
    yield from _FILTER_RULES
    yield "COMMIT"


def _nat_table(network: Network, services: Services, chains: _Chains, gone: Iterable[str]) -> Iterator[str]:
    yield "*nat"
    yield from (f":{chain} - [0:0]" for chain in (*_NAT_CHAINS, *chains, *gone))
    yield from _NAT_RULES
    for rules in chains.values():
        yield from rules
    for service in services:
        yield from _portals(network, service)
    if network.node_port_ips:
        yield from (f"{_NODEPORTS_LAST} -d {ip} -j KUBE-NODEPORTS" for ip in network.node_port_ips)
    else:
        but = "" if network.localhost_node_ports else f" ! -d {network.loopback}"
        yield f"{_NODEPORTS_LAST} -m addrtype --dst-type LOCAL{but} -j KUBE-NODEPORTS"
    yield from (f"-X {chain}" for chain in gone)
    yield "COMMIT"


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


def _to(network: Network, service: Service, address: str) -> str:
    """The match for an address of the Service."""
    return (
        f"-m {service.protocol} -p {service.protocol} -d {address}/{network.bits} --dport {service.port}"
        if address
        else f"-m {service.protocol} -p {service.protocol} --dport {service.node_port}"
    )


def _portals(network: Network, service: Service) -> Iterator[str]:
    """The rules that lead from KUBE-SERVICES and KUBE-NODEPORTS to the Service's chains."""
    name = service.full_name
    if service.internal:
        chain = local_chain(service) if service.internal_local else service_chain(service)
        to = _to(network, service, service.cluster_ip)
        yield f"-A KUBE-SERVICES {_comment(f'{name} cluster IP')} {to} -j {chain}"
    if not service.backends:
        return
    outside = external_chain(service)
    for ip in service.external_ips:
        yield f"-A KUBE-SERVICES {_comment(f'{name} external IP')} {_to(network, service, ip)} -j {outside}"
    chain = firewall_chain(service) if service.source_ranges else outside
    for ip in service.load_balancer_ips:
        yield f"-A KUBE-SERVICES {_comment(f'{name} loadbalancer IP')} {_to(network, service, ip)} -j {chain}"
    if service.node_port:
        yield f"-A KUBE-NODEPORTS {_comment(name)} {_to(network, service, '')} -j {outside}"


def _refusals(network: Network, service: Service) -> Iterator[str]:
    """The rules of the table filter: no endpoint at all: reject. Policy Local and no endpoint here: drop."""
    target = "DROP" if service.backends else "REJECT"
    reason = "has no local endpoints" if service.backends else "has no endpoints"
    comment = _comment(f"{service.full_name} {reason}")
    if not service.internal:
        yield f"-A KUBE-SERVICES {comment} {_to(network, service, service.cluster_ip)} -j {target}"
    if service.backends and service.source_ranges:
        words = _comment(f"{service.full_name} traffic not accepted by {firewall_chain(service)}")
        for ip in service.load_balancer_ips:
            yield f"-A KUBE-PROXY-FIREWALL {words} {_to(network, service, ip)} -j DROP"
    if not service.external:
        for ip in (*service.external_ips, *service.load_balancer_ips):
            yield f"-A KUBE-EXTERNAL-SERVICES {comment} {_to(network, service, ip)} -j {target}"
        if service.node_port:
            to = _to(network, service, "")
            yield f"-A KUBE-EXTERNAL-SERVICES {comment} -m addrtype --dst-type LOCAL {to} -j {target}"
    if service.health_check_node_port:
        words = _comment(f"{service.full_name} health check node port")
        yield f"-A KUBE-NODEPORTS {words} -m tcp -p tcp --dport {service.health_check_node_port} -j ACCEPT"


def _chains(network: Network, service: Service) -> _Chains:
    """The chains that only this Service has, with their rules."""
    found: _Chains = {}
    if service.uses_cluster:
        found[service_chain(service)] = []
    if service.uses_local:
        found[local_chain(service)] = []
    if service.internal:
        # Traffic that another machine routes to a ClusterIP by way of this node must come back this way.
        chain = local_chain(service) if service.internal_local else service_chain(service)
        to = _to(network, service, service.cluster_ip)
        words = _comment(f"{service.full_name} cluster IP")
        found[chain].append(f"-A {chain} {words} {to} ! -s {network.pod_cidr} -j KUBE-MARK-MASQ")
    if service.is_external and service.backends:
        found[external_chain(service)] = list(_external(network, service))
        if service.load_balancer_ips and service.source_ranges:
            found[firewall_chain(service)] = list(_firewall(network, service))
    if service.uses_cluster:
        found[service_chain(service)] += _spread(service, service_chain(service), service.backends)
    if service.uses_local:
        found[local_chain(service)] += _spread(service, local_chain(service), service.local_backends)
    for backend in service.reachable():
        found[endpoint_chain(service, backend)] = _translate(network, service, backend)
    return found


def _external(network: Network, service: Service) -> Iterator[str]:
    """Traffic to a NodePort, an external IP or a load balancer's address. With policy Local, pods of the cluster and
    the node itself use every endpoint, as if they went out to the load balancer and back."""
    chain, name = external_chain(service), service.full_name
    if not service.external_local:
        yield f"-A {chain} {_comment(f'masquerade traffic for {name} external destinations')} -j KUBE-MARK-MASQ"
    else:
        every, node = service_chain(service), "-m addrtype --src-type LOCAL"
        pods, masquerade, route = (
            _comment(f"{words} traffic for {name} external destinations")
            for words in ("pod", "masquerade LOCAL", "route LOCAL")
        )
        yield f"-A {chain} {pods} -s {network.pod_cidr} -j {every}"
        yield f"-A {chain} {masquerade} {node} -j KUBE-MARK-MASQ"
        yield f"-A {chain} {route} {node} -j {every}"
    if service.external:
        yield f"-A {chain} -j {local_chain(service) if service.external_local else service_chain(service)}"


def _firewall(network: Network, service: Service) -> Iterator[str]:
    chain = firewall_chain(service)
    words = _comment(f"{service.full_name} loadbalancer IP")
    sources = allowed_sources(network, service)
    yield from (f"-A {chain} {words} -s {source} -j {external_chain(service)}" for source in sources)
    rest = _comment(f"other traffic to {service.full_name} will be dropped by KUBE-PROXY-FIREWALL")
    yield f"-A {chain} {rest}"


def allowed_sources(network: Network, service: Service) -> tuple[str, ...]:
    """The sources that may use the load balancer's addresses. If the node may, the addresses themselves too: they may
    be the node's own, and then the node calls from them."""
    node = ip_address(network.node_ip) if network.node_ip else None
    allowed = node is not None and any(node in ip_network(source) for source in service.source_ranges)
    return (*service.source_ranges, *(service.load_balancer_ips if allowed else ()))


def _spread(service: Service, chain: str, backends: Sequence[Backend]) -> Iterator[str]:
    """One rule per endpoint for clients with session affinity, then one per endpoint for the others. Their
    probabilities make all endpoints equally likely."""
    targets = [(_comment(f"{service.full_name} -> {b}"), endpoint_chain(service, b)) for b in backends]
    for words, target in targets if service.affinity_seconds else ():
        recent = f"-m recent --name {target} --rcheck --seconds {service.affinity_seconds} --reap"
        yield f"-A {chain} {words} {recent} -j {target}"
    for index, (words, target) in enumerate(targets):
        left = len(targets) - index
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        yield f"-A {chain} {words}{chance} -j {target}"


def _translate(network: Network, service: Service, backend: Backend) -> list[str]:
    chain = endpoint_chain(service, backend)
    comment = f"-m comment --comment {service.full_name}"
    recent = f" -m recent --name {chain} --set" if service.affinity_seconds else ""
    return [
        f"-A {chain} {comment} -s {backend.address}/{network.bits} -j KUBE-MARK-MASQ",
        f"-A {chain} {comment}{recent} -m {service.protocol} -p {service.protocol} -j DNAT --to-destination {backend}",
    ]
