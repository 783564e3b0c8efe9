"""kube-proxy's iptables mode: its input for `iptables-restore --noflush --counters`.

The structure follows the project's documentation ("Virtual IPs and Service Proxies") and tests. KUBE-SERVICES has one
rule per Service port, KUBE-SVC-* distributes with the statistic match, KUBE-SEP-* marks hairpin traffic and translates.
Since 1.26 a sync writes KUBE-SERVICES completely, but other chains only for changed Services.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from perf.render import short_hash
from perf.services import CLUSTER_CIDR, Backend, Service, ServiceModel

MARK = "0x4000"

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
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
    ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
)
_FILTER_CHAINS = (
    "KUBE-NODEPORTS",
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
)
_NAT_CHAINS = ("KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")

_FILTER_RULES = (
    '-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
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
    '--comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
    "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
)


def service_chain(service: Service) -> str:
    """KUBE-SVC- and 16 letters of a hash of the ServicePortName and the protocol."""
    return "KUBE-SVC-" + short_hash(service.full_name + service.protocol, 16)


def endpoint_chain(service: Service, backend: Backend) -> str:
    return "KUBE-SEP-" + short_hash(f"{service.full_name}{service.protocol}{backend}", 16)


def jumps() -> str:
    """The chains and the jumps from the built-in chains, for the first `iptables-restore --noflush`."""
    lines: list[str] = []
    for table, chains in (("filter", _FILTER_CHAINS), ("nat", _NAT_CHAINS)):
        lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains)]
        lines += [f"-A {chain} {rule}" for where, chain, rule in JUMPS if where == table]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def render(new: ServiceModel, old: ServiceModel | None = None) -> str:
    """One sync: everything, or with `old` (the model in the kernel) only the chains of changed Services."""
    held = {service_chain(s): s for s in old.services} if old else {}
    changed = [s for s in new.services if held.get(service_chain(s)) != s]
    gone = _gone(new, held) if old else []
    return "\n".join([*_filter_table(new), *_nat_table(new, changed, gone)]) + "\n"


def _filter_table(model: ServiceModel) -> list[str]:
    rejects = [_reject(service) for service in model.services if not service.backends]
    return ["*filter", *(f":{c} - [0:0]" for c in _FILTER_CHAINS), *rejects, *_FILTER_RULES, "COMMIT"]


def _nat_table(model: ServiceModel, changed: Iterable[Service], gone: Iterable[str]) -> list[str]:
    chains = [f":{chain} - [0:0]" for chain in _NAT_CHAINS]
    rules = list(_NAT_RULES)
    for service in changed:
        if service.backends:
            chains.append(f":{service_chain(service)} - [0:0]")
            rules += _spread(service)
        for backend in service.backends:
            chains.append(f":{endpoint_chain(service, backend)} - [0:0]")
            rules += _translate(service, backend)
    services = [_portal(service) for service in model.services if service.backends]
    leaving = list(gone)
    return [
        "*nat",
        *chains,
        *(f":{chain} - [0:0]" for chain in leaving),
        *rules,
        *services,
        _NODEPORTS_LAST,
        *(f"-X {chain}" for chain in leaving),
        "COMMIT",
    ]


def _portal(service: Service) -> str:
    return (
        f'-A KUBE-SERVICES -m comment --comment "{service.full_name} cluster IP" -m {service.protocol} '
        f"-p {service.protocol} -d {service.cluster_ip}/32 --dport {service.port} -j {service_chain(service)}"
    )


def _reject(service: Service) -> str:
    return (
        f'-A KUBE-SERVICES -m comment --comment "{service.full_name} has no endpoints" -m {service.protocol} '
        f"-p {service.protocol} -d {service.cluster_ip}/32 --dport {service.port} -j REJECT"
    )


def _spread(service: Service) -> list[str]:
    """The rule that marks traffic from outside the cluster, then one rule per endpoint. Their probabilities make all
    endpoints equally likely."""
    chain = service_chain(service)
    rules = [
        f'-A {chain} -m comment --comment "{service.full_name} cluster IP" -m {service.protocol} '
        f"-p {service.protocol} -d {service.cluster_ip}/32 --dport {service.port} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ"
    ]
    count = len(service.backends)
    for index, backend in enumerate(service.backends):
        comment = f'-m comment --comment "{service.full_name} -> {backend}"'
        chance = f" -m statistic --mode random --probability {1 / (count - index):.10f}" if index < count - 1 else ""
        rules.append(f"-A {chain} {comment}{chance} -j {endpoint_chain(service, backend)}")
    return rules


def _translate(service: Service, backend: Backend) -> list[str]:
    chain = endpoint_chain(service, backend)
    comment = f"-m comment --comment {service.full_name}"
    return [
        f"-A {chain} {comment} -s {backend.address}/32 -j KUBE-MARK-MASQ",
        f"-A {chain} {comment} -m {service.protocol} -p {service.protocol} -j DNAT --to-destination {backend}",
    ]


def _gone(new: ServiceModel, held: Mapping[str, Service]) -> list[str]:
    """Chains that exist in the kernel but are no longer needed. They are deleted at the end of the restore."""
    wanted = {service_chain(s) for s in new.services if s.backends}
    wanted |= {endpoint_chain(s, b) for s in new.services for b in s.backends}
    old = dict.fromkeys(
        chain
        for name, service in held.items()
        if service.backends
        for chain in (name, *(endpoint_chain(service, backend) for backend in service.backends))
    )
    return [chain for chain in old if chain not in wanted]
