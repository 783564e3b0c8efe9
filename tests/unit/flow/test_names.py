"""From a Snapshot to the names of flows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

from netpolicy.parse import network_policy
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, RuleRef
from nodenet.abi import U32, LpmKey
from nodenet.compile.state import LocalNode, Names, ServicePortName
from nodenet.endpoint import AttachmentKey
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.types import PolicyMatch, PolicyName, ServiceName, Workload
from nodenet.model import Direction, Endpoint, Node, ObjectRef, Pod, Protocol, Service, ServicePort, ServiceType
from nodenet.store import Snapshot

WEB_IP, NODE_IP, OTHER_IP = ip_address("10.0.0.1"), ip_address("192.0.2.1"), ip_address("192.0.2.2")
WEB = Pod(ObjectRef("shop", "web-1"), "u1", {"app": "web"}, "node1", (WEB_IP,), workload=("Deployment", "web"))
DONE = Pod(ObjectRef("shop", "job-1"), "u2", {}, "node1", (ip_address("10.0.0.9"),), phase="Succeeded")
HOST = Pod(ObjectRef("kube-system", "dns"), "u3", {}, "node1", (NODE_IP,), host_network=True)
ENDPOINT = Endpoint(
    7, "c1", "eth0", "/run/netns/x", "veth1", 5, "02:00:00:00:00:01", (WEB_IP,), WEB.ref, "u1", netns_cookie=42
)
SERVICE = Service(
    ObjectRef("shop", "web"), ServiceType.CLUSTER_IP, (ip_address("10.96.0.1"),),
    (ServicePort("http", Protocol.TCP, 80),),
)  # fmt: skip
POLICY = network_policy(
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {
            "podSelector": {},
            "ingress": [
                {"from": [{"podSelector": {}}], "ports": [{"port": 80}]},
                {"from": [{"podSelector": {}}]},
                {"ports": [{"port": 80}]},
                {},
            ],
        },
    }
)
SNAPSHOT = Snapshot(
    1,
    pods=MappingProxyType({pod.ref: pod for pod in (WEB, DONE, HOST)}),
    nodes=MappingProxyType({ObjectRef("", n.name): n for n in (Node("node1", (NODE_IP,)), Node("node2", (OTHER_IP,)))}),
    services=MappingProxyType({SERVICE.ref: SERVICE}),
    policies=MappingProxyType({ObjectRef("shop", "p"): POLICY}),
    endpoints=MappingProxyType({AttachmentKey("c1", "eth0"): ENDPOINT}),
)
NAMES = Names(
    services={9: ServicePortName(SERVICE.ref, "http", 80, Protocol.TCP)},
    rules={n: RuleRef("shop", "p", PolicyDirection.INGRESS, n) for n in range(5)},
    identities={300: LabelSet.of("shop", {"app": "web"})},
    isolated_by={300: {Direction.INGRESS: (ObjectRef("shop", "p"),)}},
)
NODE = LocalNode("node1", frozenset({ip_address("10.0.0.254")}))


def build(builder=None, snapshot=SNAPSHOT, now=0, **more):
    return (builder or NameTableBuilder()).build(
        snapshot, NAMES, NODE, ipcache={LpmKey.host(WEB_IP): U32(300)}, now=now, **more
    )


def test_a_pod_has_all_its_names():
    party = build().addresses[WEB_IP]
    assert (party.namespace, party.pod, party.identity, party.endpoint_id) == ("shop", "web-1", 300, 7)
    assert party.labels == ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop")
    assert party.workloads == (Workload("Deployment", "web"),)


def test_addresses_that_are_not_a_pods():
    addresses = build().addresses
    assert addresses[NODE_IP].labels == ("reserved:host",), "a hostNetwork pod does not own its node's address"
    assert addresses[OTHER_IP].labels == ("reserved:remote-node",)
    assert addresses[ip_address("10.0.0.254")].labels == ("reserved:host",)
    assert ip_address("10.0.0.9") not in addresses, "a finished pod's address may be another's"


def test_services_rules_and_isolation():
    table = build()
    assert table.services == {9: ServiceName("shop", "web")}
    assert table.frontends == {(ip_address("10.96.0.1"), 80, 6): ServiceName("shop", "web")}
    assert [table.rules[n].match for n in range(5)] == [
        PolicyMatch.L3_L4, PolicyMatch.L3_ONLY, PolicyMatch.L4_ONLY, PolicyMatch.ALL, PolicyMatch.NONE,
    ]  # fmt: skip
    assert table.rules[2].rule == "ingress[2]"
    assert table.isolated_by == {(300, 1): (PolicyName("shop", "p"),)}
    assert table.identities[300].labels == ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop")


def test_endpoints_by_number_and_by_cookie():
    table = build()
    assert table.endpoints[7].pod == "web-1"
    assert {cookie: party.pod for cookie, party in table.netns_cookies.items()} == {42: "web-1"}


def test_what_did_not_change_is_not_made_again():
    builder = NameTableBuilder()
    before = build(builder).addresses[WEB_IP]
    assert build(builder).addresses[WEB_IP] is before
    moved = replace(SNAPSHOT, endpoints=MappingProxyType({}))
    assert build(builder, moved).frontends is build(builder).frontends
    assert build(builder, moved).addresses[WEB_IP].endpoint_id == 0
    relabelled = replace(WEB, labels={"app": "api"})
    changed = replace(SNAPSHOT, pods=MappingProxyType({WEB.ref: relabelled}))
    assert "k8s:app=api" in build(builder, changed).addresses[WEB_IP].labels


def test_a_changed_service_is_named_anew():
    builder = NameTableBuilder()
    before = build(builder)
    assert build(builder, replace(SNAPSHOT, services=MappingProxyType({}))).frontends == {}
    assert build(builder).frontends == before.frontends != {}
