"""kube-proxy's IPVS mode: addresses on kube-ipvs0, `ipvsadm -R`, ipsets, and the few iptables rules that use them.

The structure follows pkg/proxy/ipvs/README.md. Every Service address is assigned to a dummy device, so that packets are
delivered locally and IPVS sees them. Sets replace rules per Service. Round robin is the default scheduler. In this mode
policy Local has no exception for pods and for the node itself: an address has the same backends for every client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

from nodenet.kubeproxy.model import MARK, Backend, Network, Service, Services

DEVICE = "kube-ipvs0"
_PORT, _PORT_IP, _PORT_NET = "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net"
_NUMBER = "bitmap:port range 0-65535"
# Name, type and purpose according to that README. In ip6 the names of KUBE-6-* are used.
SETS = {
    "KUBE-CLUSTER-IP": (_PORT, "Kubernetes service cluster ip + port for masquerade purpose"),
    "KUBE-LOOP-BACK": (_PORT_IP, "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    "KUBE-EXTERNAL-IP": (_PORT, "Kubernetes service external ip + port for masquerade and filter purpose"),
    "KUBE-EXTERNAL-IP-LOCAL": (_PORT, "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    "KUBE-LOAD-BALANCER": (_PORT, "Kubernetes service lb portal"),
    "KUBE-LOAD-BALANCER-LOCAL": (_PORT, "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"),
    "KUBE-LOAD-BALANCER-FW": (_PORT, "Kubernetes service load balancer ip + port for load balancer with sourceRange"),
    "KUBE-LOAD-BALANCER-SOURCE-IP": (_PORT_IP, "Kubernetes service load balancer ip + port + source IP"),
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": (_PORT_NET, "Kubernetes service load balancer ip + port + source cidr"),
    "KUBE-NODE-PORT-TCP": (_NUMBER, "Kubernetes nodeport TCP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-TCP": (_NUMBER, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    "KUBE-NODE-PORT-UDP": (_NUMBER, "Kubernetes nodeport UDP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-UDP": (_NUMBER, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    "KUBE-HEALTH-CHECK-NODE-PORT": (_NUMBER, "Kubernetes health check node port"),
    "KUBE-IPVS-IPS": ("hash:ip", "Kubernetes service ips"),
}
_FLAGS = {"tcp": "-t", "udp": "-u"}
# Chains of each table, and the jumps from the built-in chains: (table, chain, rule).
_NAT_CHAINS = ("KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER")
_FILTER_CHAINS = ("KUBE-FORWARD", "KUBE-NODE-PORT", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL")
_FILTERS = ("KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER")
_PORTALS = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_JUMPS = (
    ("nat", "PREROUTING", _PORTALS),
    ("nat", "OUTPUT", _PORTALS),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
    ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
    ("filter", "INPUT", '-m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER'),
    ("filter", "OUTPUT", '-m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER'),
    ("filter", "INPUT", '-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'),
    ("filter", "FORWARD", '-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'),
    ("filter", "INPUT", '-m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT'),
)


def devices(network: Network, new: Services, old: Services | None = None) -> str:
    """Input for `ip -batch -`: the dummy device (once) and the Services' addresses."""
    held = set(_addresses(old)) if old else set()
    wanted = _addresses(new)
    lines = [f"link add {DEVICE} type dummy"] if old is None else []
    at = f"/{network.bits} dev {DEVICE}" + (" nodad" if network.version == 6 else "")
    lines += [f"addr add {address}{at}" for address in wanted if address not in held]
    lines += [f"addr del {address}/{network.bits} dev {DEVICE}" for address in sorted(held.difference(wanted))]
    return "".join(f"{line}\n" for line in lines)


def sets(network: Network, new: Services, old: Services | None = None) -> str:
    """Input for `ipset restore -exist`."""
    family = "inet" if network.version == 4 else "inet6"
    lines = []
    for name, (kind, _) in SETS.items() if old is None else ():
        sized = "" if kind == _NUMBER else f" family {family} maxelem 1048576"
        lines.append(f"create {_set(network, name)} {kind}{sized}")
    held = dict.fromkeys(_members(network, old)) if old else {}
    wanted = dict.fromkeys(_members(network, new))
    lines += [f"add {member}" for member in wanted if member not in held]
    lines += [f"del {member}" for member in held if member not in wanted]
    return "".join(f"{line}\n" for line in lines)


def virtual_servers(network: Network, new: Services, old: Services | None = None) -> str:
    """Input for `ipvsadm -R`: Services with the scheduler rr, backends with masquerading (-m) and weight 1."""
    held = dict(_servers(network, old or ()))
    lines: list[str] = []
    for key, (options, backends) in _servers(network, new):
        before = held.pop(key, None)
        if before is None:
            lines.append(f"-A {key} -s rr{options}")
        elif before[0] != options:
            lines.append(f"-E {key} -s rr{options}")
        old_backends = before[1] if before else ()
        lines += [f"-a {key} -r {b} -m -w 1" for b in backends if b not in old_backends]
        lines += [f"-d {key} -r {b}" for b in old_backends if b not in backends]
    lines += [f"-D {key}" for key in held]
    return "".join(f"{line}\n" for line in lines)


def rules(network: Network) -> str:
    """Input for `iptables-restore --noflush`: a few rules, independent of the number of Services."""
    lines: list[str] = []
    for table, chains, body in (
        ("nat", _NAT_CHAINS, _nat_rules(network)),
        ("filter", (*_FILTER_CHAINS, *_FILTERS), _filter_rules(network)),
    ):
        lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains)]
        lines += [f"-A {chain} {rule}" for where, chain, rule in _JUMPS if where == table]
        lines += [*body, "COMMIT"]
    return "\n".join(lines) + "\n"


def _match(network: Network, name: str, where: str, comment: bool = True) -> str:
    words = f'-m comment --comment "{SETS[name][1]}" ' if comment else ""
    return f"{words}-m set --match-set {_set(network, name)} {where}"


def _nat_rules(network: Network) -> Iterator[str]:
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}"
    yield f"-A KUBE-POSTROUTING {_match(network, 'KUBE-LOOP-BACK', 'dst,dst,src')} -j MASQUERADE"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}"
    words = '-m comment --comment "kubernetes service traffic requiring SNAT"'
    yield f"-A KUBE-POSTROUTING {words} -j MASQUERADE --random-fully"
    yield f"-A KUBE-SERVICES -s {network.loopback} -j RETURN"
    yield f"-A KUBE-SERVICES {_match(network, 'KUBE-LOAD-BALANCER', 'dst,dst')} -j KUBE-LOAD-BALANCER"
    outside = f"! -s {network.pod_cidr}"
    yield f"-A KUBE-SERVICES {_match(network, 'KUBE-CLUSTER-IP', 'dst,dst')} {outside} -j KUBE-MARK-MASQ"
    # Packets to external IPs from other machines, and those whose address is the node's own, go to IPVS.
    for name in ("KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"):
        match = _match(network, name, "dst,dst")
        if name == "KUBE-EXTERNAL-IP":
            yield f"-A KUBE-SERVICES {match} -j KUBE-MARK-MASQ"
        yield f"-A KUBE-SERVICES {match} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT"
        yield f"-A KUBE-SERVICES {match} -m addrtype --dst-type LOCAL -j ACCEPT"
    yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"
    for name in ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER"):
        yield f"-A KUBE-SERVICES {_match(network, name, 'dst,dst', comment=False)} -j ACCEPT"
    yield f"-A KUBE-LOAD-BALANCER {_match(network, 'KUBE-LOAD-BALANCER-LOCAL', 'dst,dst')} -j RETURN"
    yield "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ"
    for protocol in ("tcp", "udp"):
        local = _match(network, f"KUBE-NODE-PORT-LOCAL-{protocol.upper()}", "dst")
        yield f"-A KUBE-NODE-PORT -p {protocol} {local} -j RETURN"
        match = _match(network, f"KUBE-NODE-PORT-{protocol.upper()}", "dst")
        yield f"-A KUBE-NODE-PORT -p {protocol} {match} -j KUBE-MARK-MASQ"


def _filter_rules(network: Network) -> Iterator[str]:
    firewall = "KUBE-SOURCE-RANGES-FIREWALL"
    yield f"-A KUBE-PROXY-FIREWALL {_match(network, 'KUBE-LOAD-BALANCER-FW', 'dst,dst')} -j {firewall}"
    for name, where in (("KUBE-LOAD-BALANCER-SOURCE-CIDR", "src"), ("KUBE-LOAD-BALANCER-SOURCE-IP", "src")):
        yield f"-A {firewall} {_match(network, name, f'dst,dst,{where}')} -j RETURN"
    yield f"-A {firewall} -j DROP"
    words = '-m comment --comment "kubernetes forwarding rules"'
    yield f"-A KUBE-FORWARD {words} -m mark --mark {MARK}/{MARK} -j ACCEPT"
    words = '-m comment --comment "kubernetes forwarding conntrack rule"'
    yield f"-A KUBE-FORWARD {words} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield f"-A KUBE-NODE-PORT {_match(network, 'KUBE-HEALTH-CHECK-NODE-PORT', 'dst')} -j ACCEPT"
    # The addresses of kube-ipvs0 are the node's own: without this, all ports of the host are reached by them.
    for name in ("KUBE-LOAD-BALANCER", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"):
        yield f"-A KUBE-IPVS-FILTER {_match(network, name, 'dst,dst', comment=False)} -j RETURN"
    health = _match(network, "KUBE-HEALTH-CHECK-NODE-PORT", "dst", comment=False)
    yield f"-A KUBE-IPVS-FILTER {health} -j RETURN"
    others = _match(network, "KUBE-IPVS-IPS", "dst", comment=False)
    yield f"-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW {others} -j REJECT"


def _set(network: Network, name: str) -> str:
    return name if network.version == 4 else name.replace("KUBE-", "KUBE-6-", 1)


def _bound(service: Service) -> tuple[str, ...]:
    return (service.cluster_ip, *service.external_ips, *service.load_balancer_ips)


def _addresses(services: Iterable[Service]) -> list[str]:
    return list(dict.fromkeys(address for service in services for address in _bound(service)))


def _servers(network: Network, services: Iterable[Service]) -> Iterator[tuple[str, tuple[str, tuple[Backend, ...]]]]:
    """Key, options and backends of each virtual server."""
    for service in services:
        options = f" -p {service.affinity_seconds}" if service.affinity_seconds else ""
        flag = _FLAGS[service.protocol]
        yield f"{flag} {Backend(service.cluster_ip, service.port)}", (options, service.internal)
        outside = [Backend(ip, service.port) for ip in (*service.external_ips, *service.load_balancer_ips)]
        if service.node_port:
            outside += [Backend(ip, service.node_port) for ip in network.node_port_ips or (network.node_ip,)]
        for at in outside:
            yield f"{flag} {at}", (options, service.external)


def _members(network: Network, services: Iterable[Service]) -> Iterator[str]:
    for service in services:
        for name, value in _entries(network, service):
            yield f"{_set(network, name)} {value}"


def _entries(network: Network, service: Service) -> Iterator[tuple[str, str]]:
    local = "-LOCAL" if service.external_local else ""
    port = f"{service.protocol}:{service.port}"
    yield "KUBE-CLUSTER-IP", f"{service.cluster_ip},{port}"
    for backend in dict.fromkeys((*service.backends, *service.local_backends)):
        if backend.here:
            yield "KUBE-LOOP-BACK", f"{backend.address},{service.protocol}:{backend.port},{backend.address}"
    for ip in service.external_ips:
        yield f"KUBE-EXTERNAL-IP{local}", f"{ip},{port}"
    for ip in service.load_balancer_ips:
        yield "KUBE-LOAD-BALANCER", f"{ip},{port}"
        if local:
            yield "KUBE-LOAD-BALANCER-LOCAL", f"{ip},{port}"
        if service.source_ranges:
            yield "KUBE-LOAD-BALANCER-FW", f"{ip},{port}"
            for source in service.source_ranges:
                yield "KUBE-LOAD-BALANCER-SOURCE-CIDR", f"{ip},{port},{source}"
            if any(ip_address(network.node_ip) in ip_network(source) for source in service.source_ranges):
                yield "KUBE-LOAD-BALANCER-SOURCE-IP", f"{ip},{port},{ip}"
    if service.node_port:
        protocol = service.protocol.upper()
        yield f"KUBE-NODE-PORT-{protocol}", str(service.node_port)
        if local:
            yield f"KUBE-NODE-PORT-LOCAL-{protocol}", str(service.node_port)
    if service.health_check_node_port:
        yield "KUBE-HEALTH-CHECK-NODE-PORT", str(service.health_check_node_port)
    for ip in _bound(service):
        yield "KUBE-IPVS-IPS", ip
