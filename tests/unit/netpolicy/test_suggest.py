"""Suggested policies allow every recorded connection and deny what was not recorded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpolicy.cluster import Cluster, ContainerPort, Node, Pod
from netpolicy.lint import lint
from netpolicy.objects import cluster as read
from netpolicy.party import Traffic
from netpolicy.recorded import End, Seen
from netpolicy.suggest import Suggestion, Wish, suggest
from netpolicy.types import Protocol
from tests.unit.netpolicy import spec

Obj = dict[str, Any]
NAMESPACES = ("a", "b")
PORTS = (53, 80, 8080)
PROTOCOLS = (Protocol.TCP, Protocol.UDP)
OUTSIDE = ("192.0.2.1", "192.0.2.2", "198.51.100.1")


@st.composite
def worlds(draw: st.DrawFn) -> list[Pod]:
    """Pods of up to five workloads: with labels that others have too, or more of them, or none; with ports of one name
    for several numbers."""
    pods: list[Pod] = []
    for number in range(draw(st.integers(1, 5))):
        namespace = draw(st.sampled_from(NAMESPACES))
        common = draw(st.dictionaries(st.sampled_from(("app", "tier", "x")), st.sampled_from(("1", "2")), max_size=2))
        for replica in range(draw(st.integers(1, 2))):
            own = draw(st.dictionaries(st.sampled_from(("role", "x")), st.sampled_from(("1", "2")), max_size=1))
            names = draw(st.lists(st.tuples(st.sampled_from(PORTS), st.sampled_from(("", "http", "dns"))), max_size=2))
            name = f"w{number}-{replica}"
            pods.append(
                Pod.of(
                    namespace,
                    name,
                    {**common, **own, "pod-template-hash": name},
                    [ip_address(f"10.0.{number}.{replica + 1}")],
                    [ContainerPort(port, draw(st.sampled_from(PROTOCOLS)), text) for port, text in names],
                    workload=f"w{number}",
                )
            )
    return pods


def end(pod: Pod) -> End:
    return End(pod.ips[0], pod.namespace, pod.name, pod.labels.labels, pod.workload)


@st.composite
def records(draw: st.DrawFn) -> tuple[list[Pod], dict[Seen, int]]:
    pods = draw(worlds())
    sides = st.one_of(st.sampled_from(pods).map(end), st.sampled_from(OUTSIDE).map(lambda ip: End(ip_address(ip))))
    traffic = st.builds(Traffic, st.sampled_from(PROTOCOLS), st.sampled_from(PORTS))
    seen = draw(st.dictionaries(st.builds(Seen, sides, sides, traffic), st.integers(1, 3), max_size=8))
    return pods, seen


def plain(what: Pod | str) -> Obj:
    """An end as the second reading of the specification (spec.py) takes it."""
    if isinstance(what, str):
        return {"namespace": "", "labels": None, "ip": what, "ports": []}
    ports = [[port.port, str(port.protocol), port.name] for port in what.ports if port.name]
    return {"namespace": what.namespace, "labels": what.labels.mapping, "ip": str(what.ips[0]), "ports": ports}


def allowed(found: Suggestion, source: Pod | str, destination: Pod | str, traffic: Traffic) -> bool:
    namespaces = {name: {"kubernetes.io/metadata.name": name} for name in (*NAMESPACES, "kube-system")}
    ends = (plain(source), plain(destination))
    return spec.allowed(list(found.policies), namespaces, *ends, str(traffic.protocol), traffic.port)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records(), st.booleans(), st.booleans())
def test_all_that_was_seen_is_allowed_and_nothing_else(
    given_record: tuple[list[Pod], dict[Seen, int]], known: bool, closed: bool
) -> None:
    """By an independent reading of the specification. `known`: the cluster's objects are there, else only the flows."""
    pods, seen = given_record
    met = [pod for pod in pods if any(end(pod) in (each.source, each.destination) for each in seen)]
    pods = pods if known else met
    found = suggest(seen, Cluster(tuple(pods) if known else ()), Wish(dns=False, default_deny=closed))
    assert found.denied == ()
    if not known:
        # The flows do not show the names of ports.
        pods = [Pod.of(p.namespace, p.name, p.labels.mapping, p.ips, workload=p.workload) for p in pods]
    places: dict[str, Pod | str] = {str(pod): pod for pod in pods} | {ip: ip for ip in OUTSIDE}
    group = {name: _group(place, found) for name, place in places.items()}
    wanted = {
        (group[str(each.source)], group[str(each.destination)], each.traffic)
        for each in seen
        # A pod always reaches itself, which says nothing about other pods of its workload.
        if each.source != each.destination
    }
    isolated = {group[str(pod)] for pod in met} if not closed else {group[str(pod)] for pod in pods}
    for (one, source), (two, destination) in itertools.permutations(places.items(), 2):
        for traffic in itertools.starmap(Traffic, itertools.product(PROTOCOLS, PORTS)):
            if not {group[one], group[two]} & isolated:
                continue
            expected = (group[one], group[two], traffic) in wanted
            assert allowed(found, source, destination, traffic) is expected, (one, two, traffic)


def _group(place: Pod | str, found: Suggestion) -> str:
    """The workload of a pod, or the workloads that share its policy; an address."""
    if isinstance(place, str):
        return place
    for shared in found.merged:
        namespace, _, names = shared.partition("/")
        if namespace == place.namespace and place.workload in names.split("+"):
            return shared
    return f"{place.namespace}/{place.workload}"


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_workloads_share_a_policy_only_if_no_selector_tells_them_apart(pods: list[Pod]) -> None:
    """That is so if a pod of one has, for every label, the value (or no value) of some pod of the other."""
    for shared in suggest({}, Cluster(tuple(pods))).merged:
        namespace, _, names = shared.partition("/")
        workloads = [
            [dict(pod.labels.labels) for pod in pods if (pod.namespace, pod.workload) == (namespace, name)]
            for name in names.split("+")
        ]
        if len(workloads) == 2:
            assert any(
                all(pod.get(key) in {each.get(key) for each in other} for key in ("app", "tier", "x", "role"))
                for own, other in itertools.permutations(workloads)
                for pod in own
            )


def pod(name: str, ip: str, *ports: ContainerPort, namespace: str = "shop", **labels: str) -> Pod:
    return replace(Pod.of(namespace, name, {"app": name, **labels}, [ip_address(ip)], ports, name), node="n1")


WEB = pod("web", "10.0.0.1", ContainerPort(8080, name="http"))
DB = pod("db", "10.0.0.2", ContainerPort(5432))
DNS = Pod.of(
    "kube-system",
    "coredns-x",
    {"k8s-app": "kube-dns"},
    [ip_address("10.0.9.1")],
    [ContainerPort(53, Protocol.UDP, "dns")],
    workload="coredns",
)
WORLD = End(ip_address("192.0.2.1"))
TCP = Protocol.TCP


def seen(source: Pod | End, destination: Pod | End, port: int, protocol: Protocol | None = TCP) -> Seen:
    ends = [each if isinstance(each, End) else end(each) for each in (source, destination)]
    return Seen(ends[0], ends[1], Traffic(protocol, port))


def named(found: Suggestion) -> dict[str, Obj]:
    return {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["spec"] for p in found.policies}


def tcp(port: int | str) -> Obj:
    return {"protocol": "TCP", "port": port}


DNS_RULE = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}


@pytest.mark.parametrize("servers", [(), (DNS,)])
def test_a_small_shop(servers: tuple[Pod, ...]) -> None:
    """Ports by name, addresses one by one, DNS for everybody whether it was seen or not, what was seen once."""
    flows = {seen(WORLD, WEB, 8080): 7, seen(WEB, DB, 5432): 1}
    flows |= {seen(WEB, each, 53, Protocol.UDP): 3 for each in servers}
    found = suggest(flows, Cluster((WEB, DB, *servers)))
    assert named(found) == {
        "shop/db": {
            "podSelector": {"matchLabels": {"app": "db"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                    "ports": [tcp(5432)],
                }
            ],
            "egress": [DNS_RULE],
        },
        "shop/web": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"protocol": "TCP", "port": "http"}]}
            ],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [tcp(5432)]},
                DNS_RULE,
            ],
        },
    }
    assert [str(row.destination) for row in found.once] == ["shop/db"]
    assert found.denied == ()
    objects = [
        {
            "kind": "Pod",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels.mapping},
            "spec": {"containers": [{"ports": [{"containerPort": p.port, "name": p.name or None} for p in pod.ports]}]},
        }
        for pod in (WEB, DB)
    ]
    assert lint(read([*objects, *found.policies])) == []


def test_namespaces_of_the_cluster_get_policies_only_on_request() -> None:
    flows = {seen(WEB, DNS, 53, Protocol.UDP): 3}
    everything = Cluster((WEB, DNS))
    assert set(named(suggest(flows, everything))) == {"shop/web"}
    found = named(suggest(flows, everything, Wish(("kube-system",))))
    assert set(found) == {"kube-system/coredns"}
    # Its clients are all pods, not only those of one minute.
    assert {"from": [{"namespaceSelector": {}}], "ports": DNS_RULE["ports"]} in found["kube-system/coredns"]["ingress"]


def test_unseen_workloads_are_named_and_isolated_only_on_request() -> None:
    flows = {seen(WORLD, WEB, 8080): 1}
    found = suggest(flows, Cluster((WEB, DB)))
    assert (set(named(found)), found.unseen) == ({"shop/web"}, ("shop/db",))
    assert set(named(suggest(flows, Cluster((WEB, DB)), Wish(default_deny=True)))) == {"shop/web", "shop/default-deny"}


def test_names_of_policies_that_exist_are_not_used() -> None:
    taken = {"kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "shop"}, "spec": {}}
    found = suggest({seen(WORLD, WEB, 8080): 1}, Cluster((WEB,), policies=read([taken]).policies))
    assert set(named(found)) == {"shop/web-suggested"}


def test_icmp_and_the_own_node_need_no_rule_or_have_none() -> None:
    node = End(ip_address("172.30.0.1"), host=True, node="n1")
    other = End(ip_address("172.30.0.2"), host=True)
    flows = {seen(WEB, DB, 0, None): 2, seen(node, WEB, 8080): 9, seen(other, WEB, 8080): 1}
    nodes = (Node("n2", (ip_address("172.30.0.2"),)),)
    found = suggest(flows, Cluster((WEB, DB), nodes=nodes), Wish(dns=False))
    assert [(row.source, row.protocol) for row in found.not_covered] == [("shop/web", "ICMP")]
    assert [row.source for row in found.connections] == ["172.30.0.2"]
    (rule,) = named(found)["shop/web"]["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "172.30.0.2/32"}}]
    assert found.denied == ()
    # The cluster knows the node's address, the record does not.
    own = Cluster((WEB,), nodes=(Node("n1", (node.address,)),))
    found = suggest({seen(End(node.address), WEB, 8080): 1}, own, Wish(dns=False))
    assert (found.connections, found.denied) == ((), ())


def test_a_pod_that_is_gone_belongs_to_its_workload() -> None:
    """The record has the name that the pod had; the cluster has its workload, with the names of the ports."""
    gone = End(ip_address("10.0.0.77"), "shop", "web-old", (("app", "web"), ("pod-template-hash", "0")), "web")
    (policy,) = suggest({seen(WORLD, gone, 8080): 1}, Cluster((WEB,))).policies
    assert policy["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "web"}}


def test_names_from_flows_become_names_of_objects() -> None:
    ends = [
        End(ip_address(f"10.0.0.{n}"), "shop", "", (("app", str(n)),), name)
        for n, name in enumerate(("A b", "a_b", "."))
    ]
    found = suggest({seen(WORLD, each, 80): 1 for each in ends}, Cluster())
    assert set(named(found)) == {"shop/a-b", "shop/a-b-suggested", "shop/workload"}


def test_a_pod_on_the_nodes_network_is_an_address() -> None:
    """Policy cannot select it, although the record names it."""
    exporter = replace(pod("exporter", "172.30.0.2"), host_network=True, node="n2")
    found = suggest({seen(exporter, WEB, 8080): 1}, Cluster((WEB, exporter)), Wish(dns=False))
    assert set(named(found)) == {"shop/web"}
    assert named(found)["shop/web"]["ingress"][0]["from"] == [{"ipBlock": {"cidr": "172.30.0.2/32"}}]
    assert found.denied == ()


def test_all_addresses_outside_as_one_block() -> None:
    """Without the networks of pods. The address of a node stays one address."""
    node = Node("n2", (ip_address("172.30.0.2"),), (ip_network("10.0.0.0/16"), ip_network("2001:db8:1::/64")))
    six = End(ip_address("2001:db8::9"))
    flows = [seen(WORLD, WEB, 8080), seen(End(ip_address("198.51.100.9")), WEB, 8080), seen(six, WEB, 8080)]
    # A node, and a pod that is gone and has no name.
    flows += [seen(End(address), WEB, 8080) for address in (node.addresses[0], ip_address("10.0.0.99"))]
    found = suggest(dict.fromkeys(flows, 1), Cluster((WEB,), nodes=(node,)), Wish(dns=False, any_outside=True))
    (rule,) = named(found)["shop/web"]["ingress"]
    assert [peer["ipBlock"] for peer in rule["from"]] == [
        {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/16"]},
        {"cidr": "10.0.0.99/32"},
        {"cidr": "172.30.0.2/32"},
        {"cidr": "::/0", "except": ["2001:db8:1::/64"]},
    ]
    assert [(row.source, row.times) for row in found.connections] == [
        ("10.0.0.99", 1),
        ("172.30.0.2", 1),
        ("outside (0.0.0.0/0)", 2),
        ("outside (::/0)", 1),
    ]
    assert found.denied == ()


def test_an_address_of_a_pod_is_that_pod() -> None:
    """The recorder did not know the name yet."""
    found = suggest({seen(End(DB.ips[0]), WEB, 8080): 1}, Cluster((WEB, DB)), Wish(dns=False))
    assert named(found)["shop/web"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "db"}}}]


def test_dns_servers_are_like_other_pods_without_the_rule_for_dns() -> None:
    question = {seen(WEB, DNS, 53, Protocol.UDP): 1}
    found = suggest(question, Cluster((WEB, DNS)), Wish(dns=False))
    (rule,) = named(found)["shop/web"]["egress"]
    assert (rule["to"], rule["ports"]) == (DNS_RULE["to"], [{"protocol": "UDP", "port": "dns"}])
    # Their other ports are no part of that rule.
    found = suggest({seen(WEB, DNS, 9153): 1}, Cluster((WEB, DNS)))
    rules = named(found)["shop/web"]["egress"]
    assert ([rule["ports"] for rule in rules], found.denied) == ([[tcp(9153)], DNS_RULE["ports"]], ())


def test_a_name_that_means_several_ports_is_not_used() -> None:
    two = [replace(pod("web", f"10.0.0.{n}", ContainerPort(n, name="http")), name=f"web-{n}") for n in (80, 81)]
    found = suggest({seen(WORLD, two[0], 80): 1}, Cluster(tuple(two)), Wish(dns=False))
    (rule,) = named(found)["shop/web"]["ingress"]
    assert rule["ports"] == [tcp(80)]


def test_labels_that_change_with_every_rollout_select_nothing() -> None:
    twins = [
        Pod.of("shop", f"{name}-0", {"app": "x", "pod-template-hash": name}, [ip_address(ip)], workload=name)
        for name, ip in (("blue", "10.0.0.1"), ("green", "10.0.0.2"))
    ]
    found = suggest({seen(WORLD, twins[0], 80): 1}, Cluster(tuple(twins)), Wish(dns=False))
    assert (found.merged, named(found)["shop/blue-green"]["podSelector"]) == (
        ("shop/blue+green",),
        {"matchLabels": {"app": "x"}},
    )
