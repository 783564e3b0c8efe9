"""What real API servers send: nulls, absent fields, unknown ones; and what is wrong is said with its field."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.types import NetworkPolicy, PortRule, Rule
from netpolicy.types import Protocol as PolicyProtocol
from nodenet import kinds
from nodenet.kinds import API_KINDS, ApiKind, Kind
from nodenet.kube.decode import DecodeError, decode
from nodenet.model import (
    EndpointSlice,
    HostPort,
    NamedPort,
    Node,
    ObjectRef,
    Pod,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)


def decoded(kind: Kind, **obj: Any) -> Any:
    metadata = {"name": "x", "namespace": "ns", "resourceVersion": "5", **obj.pop("metadata", {})}
    return decode(kind, json.dumps({"metadata": metadata, **obj}).encode()).obj


@pytest.mark.parametrize("kind", API_KINDS)
def test_the_least_object(kind: Kind) -> None:
    """Named, and nothing else; then everything null."""
    extra = {"spec": {"podSelector": {}}} if kind is kinds.NETWORK_POLICY else {}
    assert decode(kind, json.dumps({"metadata": {"name": "x"}, **extra}).encode()).ref.name == "x"
    nulls = {"spec": None, "status": None, "endpoints": None, "ports": None, "addressType": None}
    labels = {"labels": None, "annotations": None, "ownerReferences": None, "namespace": None}
    if kind is not kinds.NETWORK_POLICY:
        assert decode(kind, json.dumps({"metadata": {"name": "x", **labels}, **nulls}).encode()).version == ""


def test_a_pod() -> None:
    pod = decoded(
        kinds.POD,
        metadata={
            "uid": "u",
            "labels": {"app": "web", "pod-template-hash": "5d7"},
            "managedFields": [{"fieldsV1": {"f:x": {}}}],
            "ownerReferences": [
                {"kind": "Thing", "name": "t"},
                {"kind": "ReplicaSet", "name": "web-5d7", "controller": True},
            ],
        },
        spec={
            "nodeName": "node1",
            "hostNetwork": None,
            "containers": [
                {
                    "name": "c",
                    "ports": [
                        {"containerPort": 80, "name": "http", "protocol": "TCP"},
                        {"containerPort": 81},
                        {"containerPort": "53", "name": "dns", "protocol": "UDP"},
                    ],
                }
            ],
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "name": "once"}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9090, "name": "side"}]},
            ],
        },
        status={"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}]},
    )
    assert pod == Pod(
        ObjectRef("ns", "x"),
        "u",
        {"app": "web", "pod-template-hash": "5d7"},
        "node1",
        (ip_address("10.0.0.5"), ip_address("fd00::5")),
        False,
        "Running",
        (
            NamedPort("http", PolicyProtocol.TCP, 80),
            NamedPort("dns", PolicyProtocol.UDP, 53),
            NamedPort("side", PolicyProtocol.TCP, 9090),
        ),
        ("Deployment", "web"),
    )


def host_ports(*ports: dict[str, Any], **spec: Any) -> tuple[HostPort, ...]:
    pod = decoded(kinds.POD, spec={"containers": [{"ports": list(ports)}], **spec})
    assert isinstance(pod, Pod)
    return pod.host_ports


def test_host_ports_of_a_pod() -> None:
    side = {"restartPolicy": "Always", "ports": [{"containerPort": 5, "hostPort": 6, "protocol": "SCTP"}]}
    once = {"ports": [{"containerPort": 7, "hostPort": 8}]}
    ports = (
        {"containerPort": 80, "hostPort": 8080, "name": "http"},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"containerPort": 81},
        {"containerPort": 82, "hostPort": 0},
    )
    found = host_ports(*ports, initContainers=[side, once])
    assert found == (
        HostPort(8080, 80, Protocol.TCP),
        HostPort(53, 53, Protocol.UDP, ip_address("127.0.0.1")),
        HostPort(6, 5, Protocol.SCTP),
    )
    # The pods of a DaemonSet share one object.
    assert host_ports(*ports, initContainers=[side, once]) is found
    # The API server writes hostPort into each port of such a pod.
    assert host_ports(*ports, hostNetwork=True) == ()


def test_an_invalid_host_ip_closes_the_port() -> None:
    """Without it, the port would be open on all addresses of the node."""
    good = {"containerPort": 81, "hostPort": 81}
    for bad in ({"hostIP": "localhost"}, {"hostPort": 99999}, {"containerPort": 0}, {"protocol": "ICMP"}):
        assert host_ports({"containerPort": 80, "hostPort": 80, **bad}, good) == (HostPort(81, 81, Protocol.TCP),)


def test_a_pod_with_one_address_and_a_static_one() -> None:
    pod = decoded(
        kinds.POD,
        metadata={"uid": "mirror", "annotations": {"kubernetes.io/config.mirror": "static"}},
        status={"podIP": "10.0.0.5", "podIPs": None},
    )
    assert pod.ips == (ip_address("10.0.0.5"),)
    assert pod.uid == "static"


@pytest.mark.parametrize(
    ("owner", "workload"),
    [
        ({"kind": "Job", "name": "tidy-28764000", "controller": True}, ("CronJob", "tidy")),
        ({"kind": "Job", "name": "tidy", "controller": True}, ("Job", "tidy")),
        ({"kind": "StatefulSet", "name": "db", "controller": True}, ("StatefulSet", "db")),
        ({"kind": "ReplicaSet", "name": "own", "controller": True}, ("ReplicaSet", "own")),
        ({"kind": "Node", "name": "n"}, None),
    ],
)
def test_workloads(owner: Any, workload: Any) -> None:
    assert decoded(kinds.POD, metadata={"ownerReferences": [owner]}).workload == workload


def test_a_node() -> None:
    addresses = [{"type": "InternalIP", "address": "192.168.0.1"}, {"type": "Hostname", "address": "node1"}]
    node = decoded(kinds.NODE, spec={"podCIDR": "10.0.1.0/24"}, status={"addresses": addresses})
    assert node == Node("x", (ip_address("192.168.0.1"),), (ip_network("10.0.1.0/24"),))
    assert decoded(kinds.NODE, spec={"podCIDRs": ["10.0.1.0/24", "fd00::/64"]}).pod_cidrs[1] == ip_network("fd00::/64")


def test_services() -> None:
    ports = [{"port": 80, "targetPort": "http", "name": None}, {"port": "53", "protocol": "UDP", "name": "dns"}]
    service = decoded(kinds.SERVICE, spec={"clusterIP": "10.96.0.1", "type": "LoadBalancer", "ports": ports})
    assert service == Service(
        ObjectRef("ns", "x"),
        ServiceType.LOAD_BALANCER,
        (ip_address("10.96.0.1"),),
        (ServicePort("", Protocol.TCP, 80), ServicePort("dns", Protocol.UDP, 53)),
    )
    assert decoded(kinds.SERVICE, spec={"clusterIP": "None", "clusterIPs": ["None"]}).cluster_ips == ()
    assert decoded(kinds.SERVICE, spec={"clusterIP": ""}).cluster_ips == ()
    assert decoded(kinds.SERVICE, spec={"type": "ExternalName", "externalName": "a.b"}).cluster_ips == ()
    assert decoded(kinds.SERVICE, spec={"publishNotReadyAddresses": True}).publish_not_ready_addresses


def test_every_field_of_a_service() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.1",
        "ports": [{"port": 80, "nodePort": 30080}],
        "externalIPs": ["192.0.2.010", "2001:db8::1"],
        "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30081,
    }
    ingress = [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"}]
    found = decoded(kinds.SERVICE, spec=spec, status={"loadBalancer": {"ingress": [*ingress, {"hostname": "lb"}]}})
    assert found.ports == (ServicePort("", Protocol.TCP, 80, 30080),)
    assert found.external_ips == (ip_address("192.0.2.10"), ip_address("2001:db8::1"))
    assert found.load_balancer_ips == (ip_address("203.0.113.1"), ip_address("203.0.113.2"))
    assert found.source_ranges == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert (found.affinity_seconds, found.health_check_node_port) == (60, 30081)
    assert (found.internal_local, found.external_local) == (True, True)


def test_defaults_of_a_service() -> None:
    found = decoded(kinds.SERVICE, spec={"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})
    assert (found.source_ranges, found.affinity_seconds, found.ports[0].node_port) == (None, 0, 0)
    assert (found.internal_local, found.external_local) == (False, False)
    assert decoded(kinds.SERVICE, spec={"sessionAffinity": "ClientIP"}).affinity_seconds == 10800


def test_an_unreadable_source_range_allows_nothing() -> None:
    """Neither IPv4 nor IPv6: a family without a range would have no restriction."""
    ranges = {"loadBalancerSourceRanges": ["10.0.0.0/8", "ten"]}
    wanted = tuple(map(ip_network, ("10.0.0.0/8", "0.0.0.0/32", "::/128")))
    assert decoded(kinds.SERVICE, spec=ranges).source_ranges == wanted


def test_hints_and_labels_of_a_slice() -> None:
    hints = {"forZones": [{"name": "b"}, {"name": "a"}, {"name": ""}], "forNodes": [{"name": "node1"}]}
    found = decoded(kinds.ENDPOINT_SLICE, **SLICE, endpoints=[{"addresses": ["10.0.0.3"], "hints": hints}])
    assert (found.endpoints[0].for_zones, found.endpoints[0].for_nodes) == (("a", "b"), ("node1",))
    for label in ("service-proxy-name", "headless"):
        labels = {**SLICE["metadata"]["labels"], f"service.kubernetes.io/{label}": ""}
        metadata = {"name": "x", "namespace": "ns", "labels": labels}
        assert decode(kinds.ENDPOINT_SLICE, json.dumps({**SLICE, "metadata": metadata}).encode()).obj is None


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_conditions_that_are_absent(conditions: Any, expected: tuple[bool, bool, bool]) -> None:
    slice_ = decoded(
        kinds.ENDPOINT_SLICE,
        metadata={"labels": {"kubernetes.io/service-name": "web"}},
        addressType="IPv4",
        endpoints=[
            {
                "addresses": ["10.0.0.1"],
                "conditions": conditions,
                "nodeName": "node1",
                "targetRef": {"kind": "Pod", "name": "p"},
            }
        ],
        ports=[{"name": "", "port": 80, "protocol": "TCP", "appProtocol": "http"}, {"name": "all", "port": None}],
    )
    assert slice_ == EndpointSlice(
        ObjectRef("ns", "x"),
        ObjectRef("ns", "web"),
        (ServicePort("", Protocol.TCP, 80),),
        (SliceEndpoint((ip_address("10.0.0.1"),), *expected, "node1", ObjectRef("ns", "p")),),
    )


def test_a_slice_of_no_service_and_one_of_names() -> None:
    assert decoded(kinds.ENDPOINT_SLICE) is None
    labels = {"labels": {"kubernetes.io/service-name": "web"}}
    names = decoded(kinds.ENDPOINT_SLICE, metadata=labels, addressType="FQDN", endpoints=[{"addresses": ["a.b"]}])
    assert names.endpoints == ()


def test_a_policy_as_an_item_of_a_list() -> None:
    policy = decoded(
        kinds.NETWORK_POLICY, spec={"podSelector": {}, "policyTypes": ["Ingress"], "novelty": 1}, status={}
    )
    assert isinstance(policy, NetworkPolicy)
    assert (policy.namespace, policy.name) == ("ns", "x")


SERVICE = {"clusterIPs": ["10.96.0.1", "10.96"], "ports": [{"port": 99999}, {"port": 53, "protocol": "UDP"}]}
SLICE = {"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "ports": [{"port": 80}]}


@pytest.mark.parametrize(
    ("kind", "obj", "message", "rest"),
    [
        (
            kinds.POD,
            {"status": {"podIPs": [{"ip": "10.0.0"}, {"ip": "10.0.0.2"}]}},
            "status.podIPs[0].ip: expected an IP address, got '10.0.0'",
            {"ips": (ip_address("10.0.0.2"),)},
        ),
        (
            kinds.POD,
            {"spec": {"containers": 7, "nodeName": "n"}},
            "spec.containers: Expected `array | null`, got `int`",
            {"node_name": "n"},
        ),
        (
            kinds.POD,
            {
                "spec": {
                    "containers": [{"ports": [{"name": "a", "containerPort": "b"}, {"name": "c", "containerPort": 1}]}]
                }
            },
            "spec.containers[0].ports[0].containerPort: Expected `int`",
            {"named_ports": (NamedPort("c", PolicyProtocol.TCP, 1),)},
        ),
        (
            kinds.POD,
            {"metadata": {"labels": {"app": "web", "n": 7}}},
            "metadata.labels[n]: Expected `str`",
            {"labels": {"app": "web"}, "labels_unread": True},
        ),
        (kinds.NAMESPACE, {"metadata": {"labels": [7]}}, "metadata.labels: Expected", {"labels_unread": True}),
        (
            kinds.SERVICE,
            {"spec": SERVICE},
            "spec.ports[0].port: expected 1-65535, got 99999",
            {"cluster_ips": (ip_address("10.96.0.1"),), "ports": (ServicePort("", Protocol.UDP, 53),)},
        ),
        (
            kinds.SERVICE,
            {"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}},
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: expected 1-86400, got 86401: 10800 is used",
            {"affinity_seconds": 10800},
        ),
        (
            kinds.SERVICE,
            {"spec": {"internalTrafficPolicy": "Near", "ports": [{"port": 1, "nodePort": 99999}]}},
            "spec.internalTrafficPolicy: expected Cluster or Local, got 'Near': Cluster is used",
            {"internal_local": False, "ports": (ServicePort("", Protocol.TCP, 1),)},
        ),
        (
            kinds.SERVICE,
            {"spec": {"externalIPs": ["a", "192.0.2.1"], "healthCheckNodePort": 99999}},
            "spec.externalIPs[0]: expected an IP address, got 'a'",
            {"external_ips": (ip_address("192.0.2.1"),), "health_check_node_port": 0},
        ),
        (kinds.SERVICE, {"spec": {"type": "Cluster"}}, "spec.type: expected one of ClusterIP, ", {"ports": ()}),
        (
            kinds.SERVICE,
            {"spec": {"ports": [{"port": 1, "protocol": "QUIC"}, {"port": 2}]}},
            "spec.ports[0].protocol: expected TCP, UDP or SCTP, got 'QUIC'",
            {"ports": (ServicePort("", Protocol.TCP, 2),)},
        ),
        (
            kinds.ENDPOINT_SLICE,
            {**SLICE, "endpoints": [{"addresses": ["10.0.0.300", "10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]},
            "endpoints[0].addresses[0]: expected an IP address",
            {"endpoints": (SliceEndpoint((ip_address("10.0.0.4"),)),)},
        ),
        (
            kinds.ENDPOINT_SLICE,
            {
                **SLICE,
                "endpoints": [{"addresses": ["10.0.0.3"], "conditions": {"ready": []}}, {"addresses": ["10.0.0.4"]}],
            },
            "endpoints[0].conditions.ready: Expected `bool | null`",
            {"endpoints": (SliceEndpoint((ip_address("10.0.0.4"),)),)},
        ),
        (
            kinds.NODE,
            {"spec": {"podCIDRs": ["ten", "010.0.1.0/24"]}},
            "spec.podCIDRs[0]: expected a network",
            {"pod_cidrs": (ip_network("10.0.1.0/24"),)},
        ),
        (
            kinds.NETWORK_POLICY,
            {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 99999}, {"port": 80}]}]}},
            "spec.ingress[0].ports[0].port: expected 1-65535, got 99999: this port matches nothing",
            {"ingress": (Rule((), (PortRule(PolicyProtocol.TCP, 80),)),)},
        ),
    ],
)
def test_one_bad_element_costs_that_element(kind: Kind, obj: Any, message: str, rest: dict[str, Any]) -> None:
    """It is named with its field, and the rest of the object counts."""
    metadata = {"name": "x", "namespace": "ns", **obj.get("metadata", {})}
    found = decode(kind, json.dumps({**obj, "metadata": metadata}).encode())
    assert any(text.startswith(message) for text in found.unread)
    assert {name: getattr(found.obj, name) for name in rest} == rest


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("010.000.0.09", "10.0.0.9"),
        ("::ffff:10.0.0.9", "10.0.0.9"),
        ("::ffff:010.0.0.9", "10.0.0.9"),
        ("fd00:00001::1", "fd00:1::1"),
    ],
)
def test_addresses_mean_what_an_api_server_means(text: str, meaning: str) -> None:
    """Leading zeros are decimal (010 is not 8), IPv4-mapped is IPv4: everywhere an address is read."""
    wanted = (ip_address(meaning),)
    assert decoded(kinds.POD, status={"podIPs": [{"ip": text}]}).ips == wanted
    assert decoded(kinds.NODE, status={"addresses": [{"type": "InternalIP", "address": text}]}).addresses == wanted
    assert decoded(kinds.SERVICE, spec={"clusterIPs": [text]}).cluster_ips == wanted
    assert decoded(kinds.ENDPOINT_SLICE, **SLICE, endpoints=[{"addresses": [text]}]).endpoints[0].addresses == wanted


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda part: (
            st.lists(part, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ("ports", "labels", "ip", "name", "addresses", "conditions", "ready", "ingress", "from", "cidr")
                ),
                part,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
@pytest.mark.parametrize("kind", API_KINDS)
def test_whatever_a_named_object_holds_it_is_read(kind: ApiKind, part: Any) -> None:
    """Any JSON in any place: the object is there, with what can be read of it."""
    for field in ("labels", "spec", "status", "endpoints", "ports"):
        obj = {"metadata": {"name": "x", "namespace": "ns"}, "spec": {}, "status": {}}
        obj |= {field: part} if field != "labels" else {"metadata": {"name": "x", "namespace": "ns", "labels": part}}
        assert decode(kind, json.dumps(obj).encode()).ref == ObjectRef("ns" if kind.resource.namespaced else "", "x")


@pytest.mark.parametrize(
    "raw", [b"null", b"[]", b"{}", b'{"metadata": {}}', b'{"metadata": null}', b"{", b'{"metadata": {"name": 7}}']
)
@pytest.mark.parametrize("kind", API_KINDS)
def test_what_has_no_name(kind: Kind, raw: bytes) -> None:
    with pytest.raises(DecodeError, match="without a name"):
        decode(kind, raw)


def test_equal_texts_of_many_pods_are_one_object() -> None:
    """A large cluster has few different labels, nodes and namespaces, and each pod would hold its own copy."""

    def pod(name: str) -> Pod:
        metadata = {"name": name, "namespace": "a-namespace", "labels": {"a-label": "a-value"}}
        raw = {"metadata": metadata, "spec": {"nodeName": "a-node"}, "status": {"phase": "Running"}}
        found = decode(kinds.POD, json.dumps(raw).encode()).obj
        assert isinstance(found, Pod)
        return found

    one, two = pod("one"), pod("two")
    assert one.node_name is two.node_name
    assert one.ref.namespace is two.ref.namespace
    assert one.labels["a-label"] is two.labels["a-label"]
    assert one.phase is two.phase
