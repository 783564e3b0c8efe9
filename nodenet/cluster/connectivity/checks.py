"""What a connectivity test tries: each check as a plan of connections with the result that each must have. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nodenet.cluster.connectivity import objects
from nodenet.cluster.connectivity.peer import PORTS
from nodenet.cluster.connectivity.values import Ask, Check, Family, Peer, Round, Skipped, Stage, Wanted

_PORT, _OTHER_PORT = PORTS
_PROTOCOLS = ("tcp", "udp")


def _url(protocol: str, family: Family, host: str, port: int) -> str:
    return f"{protocol}{family}://{f'[{host}]' if ':' in host else host}:{port}"


def _to_pod(
    client: Peer, server: Peer, family: Family, wanted: Wanted = Wanted.OK, port: int = _PORT
) -> tuple[Ask, ...]:
    """Both protocols. The server must see the client's own address."""
    if family not in server.ips:
        return ()
    return tuple(
        Ask(
            client.name,
            _url(protocol, family, server.ips[family], port),
            f"{server.name} {protocol}/{port}",
            wanted,
            frozenset([server.name]),
            client.ips.get(family, ""),
        )
        for protocol in _PROTOCOLS
    )


def _same_node(stage: Stage, family: Family) -> list[Round]:
    pairs = zip(stage.clients, stage.servers, strict=True)
    return [Round(tuple(ask for client, server in pairs for ask in _to_pod(client, server, family)))]


def _other_node(stage: Stage, family: Family) -> list[Round]:
    if len(stage.clients) < 2:
        raise Skipped("one node only")
    pairs = zip(stage.clients, reversed(stage.servers), strict=True)
    return [Round(tuple(ask for client, server in pairs for ask in _to_pod(client, server, family)))]


def _to_service(stage: Stage, family: Family, name: str, clients: Iterable[Peer], servers: Iterable[Peer]) -> Round:
    address = stage.services[name].get(family)
    if address is None:
        raise Skipped(f"the cluster's Services have no IPv{family} addresses")
    names = frozenset(server.name for server in servers)
    return Round(
        tuple(
            Ask(
                client.name,
                _url(protocol, family, address, _PORT),
                f"Service {name} {protocol}/{_PORT}",
                servers=names,
                source=client.ips[family],
            )
            for client in clients
            for protocol in _PROTOCOLS
        )
    )


def _service(stage: Stage, family: Family) -> list[Round]:
    return [_to_service(stage, family, objects.SERVICE, stage.clients, stage.servers)]


def _hairpin(stage: Stage, family: Family) -> list[Round]:
    """The server sees the Service's or another node address, never its own: that would be answered over loopback."""
    found = _to_service(stage, family, objects.HAIRPIN, stage.servers[:1], stage.servers[:1])
    return [Round(tuple(replace(ask, source="") for ask in found.asks))]


def _need_dns(stage: Stage) -> None:
    if not stage.has_dns:
        raise Skipped("no cluster DNS: kube-system has no Service with the label k8s-app=kube-dns")


def _dns(stage: Stage, _family: Family) -> list[Round]:
    _need_dns(stage)
    name = f"{objects.SERVICE}.{stage.namespace}.svc"
    wanted = ",".join(sorted(stage.services[objects.SERVICE].values()))
    return [Round(tuple(Ask(client.name, f"dns://{name}?expect={wanted}", f"DNS {name}") for client in stage.clients))]


def _headless(stage: Stage, family: Family) -> list[Round]:
    _need_dns(stage)
    name = f"{objects.HEADLESS}.{stage.namespace}.svc"
    wanted = ",".join(sorted(address for server in stage.servers for address in server.ips.values()))
    names = frozenset(server.name for server in stage.servers)
    asks = tuple(
        ask
        for client in stage.clients
        for ask in (
            Ask(client.name, f"dns://{name}?expect={wanted}", f"DNS {name}"),
            Ask(client.name, _url("tcp", family, name, _PORT), f"{name} tcp/{_PORT}", servers=names),
        )
    )
    return [Round(asks)]


def _node_port(stage: Stage, family: Family) -> list[Round]:
    asks = tuple(
        Ask(client.name, _url("tcp", family, addresses[family], stage.node_port), f"node {node} tcp/{stage.node_port}")
        for client in stage.clients
        for node, addresses in stage.nodes.items()
        if family in addresses
    )
    if not asks:
        raise Skipped(f"the nodes have no IPv{family} addresses")
    return [Round(asks, refused_means="node ports are not served: every node refuses")]


def _egress(stage: Stage, family: Family) -> list[Round]:
    if not stage.egress_target:
        raise Skipped("no target: --egress-target HOST:PORT, a TCP server outside of the cluster")
    host, _, port = stage.egress_target.rpartition(":")
    host = host.strip("[]")
    if (host.replace(".", "").isdigit() and family == 6) or (":" in host and family == 4):
        raise Skipped(f"{host} has no IPv{family} address")
    return [
        Round(
            tuple(
                Ask(client.name, _url("open", family, host, int(port)), f"{stage.egress_target} tcp")
                for client in stage.clients
            )
        )
    ]


def _api(stage: Stage, family: Family) -> list[Round]:
    if family not in stage.api:
        raise Skipped(f"the Service default/kubernetes has no IPv{family} address")
    target = _url("tls", family, stage.api[family], stage.api_port)
    return [
        Round(
            tuple(Ask(client.name, target, "Service default/kubernetes, a TLS handshake") for client in stage.clients)
        )
    ]


def _denied(asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    return tuple(replace(ask, wanted=Wanted.DENIED) for ask in asks)


def _to_all(stage: Stage, client: Peer, family: Family) -> tuple[Ask, ...]:
    return tuple(ask for server in stage.servers for ask in _to_pod(client, server, family))


def _deny_ingress(stage: Stage, family: Family) -> list[Round]:
    """Allowed before and after, so that a result of the middle comes from the policy."""
    asks = tuple(ask for client in stage.clients for ask in _to_all(stage, client, family))
    deny = objects.policy(stage.namespace, "deny-ingress", {objects.ROLE: objects.SERVER}, "Ingress", [])
    return [Round(asks), Round(_denied(asks), (deny,)), Round(asks)]


def _deny_egress(stage: Stage, family: Family) -> list[Round]:
    """Only the client that the policy selects is cut off."""
    first, friend = _to_all(stage, stage.clients[0], family), _to_all(stage, stage.friend, family)
    deny = objects.policy(stage.namespace, "deny-egress", {"name": stage.clients[0].name}, "Egress", [])
    return [Round(first + friend), Round(_denied(first) + friend, (deny,)), Round(first + friend)]


def _allow_by_label(stage: Stage, family: Family) -> list[Round]:
    """The friend reaches one port over TCP, and nothing else reaches the servers."""
    rule = {
        "from": [{"podSelector": {"matchLabels": objects.FRIEND}}],
        "ports": [{"protocol": "TCP", "port": _PORT}],
    }
    allow = objects.policy(stage.namespace, "allow-friend", {objects.ROLE: objects.SERVER}, "Ingress", [rule])
    friend = _to_all(stage, stage.friend, family)
    allowed = tuple(ask for ask in friend if ask.target.startswith("tcp"))
    forbidden = (
        *(ask for ask in friend if ask not in allowed),
        *(ask for server in stage.servers for ask in _to_pod(stage.friend, server, family, port=_OTHER_PORT)),
        *(ask for client in stage.clients for ask in _to_all(stage, client, family)),
    )
    return [Round(allowed + forbidden), Round(allowed + _denied(forbidden), (allow,))]


def _host_to_pod(stage: Stage, _family: Family) -> list[Round]:
    """Pods that a policy isolates become ready only if the kubelet's probes reach them from the host."""
    isolated = {objects.ROLE: objects.ISOLATED}
    deny = objects.policy(stage.namespace, "isolate", isolated, "Ingress", [])
    pods = tuple(
        objects.pod(stage.namespace, f"isolated-{number}", client.node, stage.image, **isolated)
        for number, client in enumerate(stage.clients, 1)
    )
    return [Round(policies=(deny,), pods=pods)]


CHECKS: tuple[Check, ...] = (
    Check("pod-to-pod-same-node", "pods of one node reach each other, with their own addresses", _same_node),
    Check("pod-to-pod-other-node", "pods of two nodes reach each other, with their own addresses", _other_node),
    Check("pod-to-service", "a Service's ClusterIP leads to its pods", _service),
    Check("pod-to-itself-by-service", "a pod reaches itself through its Service", _hairpin),
    Check("dns", "the cluster's DNS answers with the ClusterIPs of a Service", _dns, per_family=False),
    Check("headless", "the name of a headless Service has the addresses of its pods", _headless),
    Check("nodeport", "a node port of every node leads to the Service's pods", _node_port),
    Check("egress", "pods reach a server outside of the cluster", _egress),
    Check("pod-to-apiserver", "pods reach the API server through its Service", _api),
    Check("host-to-pod", "probes reach a pod that a policy isolates: it becomes ready", _host_to_pod, per_family=False),
    Check("deny-ingress", "a policy without rules cuts servers off, and only while it exists", _deny_ingress),
    Check("deny-egress", "a policy without rules cuts one client off, and only while it exists", _deny_egress),
    Check("allow-by-label", "a policy allows one port to the clients with a label, and nothing else", _allow_by_label),
)
