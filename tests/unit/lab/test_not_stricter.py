"""What Kubernetes accepts, the lab accepts: a test that needs a strange object can have it.

Each case says which part of Kubernetes lets it through.
"""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import ApiError

Obj = dict[str, Any]


def pod(**spec: Any) -> Obj:
    body = {"containers": [{"name": "c", "image": "i"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": body}


def service(**spec: Any) -> Obj:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}], **spec}}


def policy(**spec: Any) -> Obj:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "a"},
        "spec": {"podSelector": {}, **spec},
    }


def endpoint_slice(**body: Any) -> Obj:
    made = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "a"}}
    return {**made, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], **body}


@pytest.fixture
def client(api: ApiServer) -> LocalClient:
    return api.client


async def test_a_null_rule_is_a_rule_without_limits(client: LocalClient) -> None:
    """Go decodes null elements to zero values (encoding/json): `ingress:` with a lone dash allows everything."""
    stored = await client.create(policy(ingress=[None], egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]))
    assert stored["spec"]["ingress"] == [{}]


@pytest.mark.parametrize(
    ("made", "path", "value"),
    [
        (pod(restartPolicy="", dnsPolicy=""), ("restartPolicy",), "Always"),
        (service(type="", sessionAffinity="", clusterIP=""), ("type",), "ClusterIP"),
        (service(ports=[{"port": 80, "protocol": ""}]), ("ports", 0, "protocol"), "TCP"),
        (service(ports=[{"port": 80, "targetPort": 0}]), ("ports", 0, "targetPort"), 80),
        (service(ports=[{"port": 80, "targetPort": ""}]), ("ports", 0, "targetPort"), 80),
        (service(ports=[{"port": 80, "nodePort": 0}]), ("ports", 0, "port"), 80),
    ],
)
async def test_a_zero_value_is_an_unset_one(client: LocalClient, made: Obj, path: tuple[Any, ...], value: Any) -> None:
    """pkg/apis/core/v1/defaults.go looks for "" and 0, not for absent fields."""
    found: Any = (await client.create(made))["spec"]
    for key in path:
        found = found[key]
    assert found == value


async def test_a_negative_grace_period_means_one_second(client: LocalClient) -> None:
    """API reference, PodSpec; ValidatePodUpdate speaks of "if it was previously negative"."""
    stored = await client.create(pod(terminationGracePeriodSeconds=-5))
    assert stored["spec"]["terminationGracePeriodSeconds"] == 1


@pytest.mark.parametrize("port", [0, -1, 65536, 2**31 - 1])
async def test_an_endpointslice_may_have_any_port_number(client: LocalClient, port: int) -> None:
    """pkg/apis/discovery/validation: validatePorts does not look at it."""
    stored = await client.create(endpoint_slice(ports=[{"name": "http", "port": port}]))
    assert stored["ports"][0]["port"] == port


async def test_a_nodes_address_may_be_anything(client: LocalClient) -> None:
    """ValidateNode: all status fields are optional and are not judged."""
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "not-an-address"}]},
    }
    assert (await client.create(node))["status"]["addresses"][0]["address"] == "not-an-address"


@pytest.mark.parametrize(
    ("spec", "families", "family_policy"),
    [
        ({"ipFamilies": ["IPv6"]}, ["IPv6", "IPv4"], "RequireDualStack"),
        ({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}, ["IPv6"], "SingleStack"),
        ({"ipFamilyPolicy": "RequireDualStack"}, ["IPv4", "IPv6"], "RequireDualStack"),
        ({}, ["IPv4", "IPv6"], "RequireDualStack"),
    ],
)
async def test_a_headless_service_without_selector_has_the_families_it_wants(
    client: LocalClient, spec: Obj, families: list[str], family_policy: str
) -> None:
    """pkg/registry/core/service/storage/alloc.go, initIPFamilyFields: "headless + selectorless"."""
    found = (await client.create(service(clusterIP="None", **spec)))["spec"]
    assert (found["ipFamilies"], found["ipFamilyPolicy"]) == (families, family_policy)


async def test_such_families_still_need_the_cluster_elsewhere(client: LocalClient) -> None:
    with pytest.raises(ApiError, match="not configured on this cluster"):
        await client.create(service(ipFamilies=["IPv6"]))


async def test_kube_node_lease_may_be_deleted(client: LocalClient) -> None:
    """plugin/pkg/admission/namespace/lifecycle: three namespaces are immortal, and this is none of them."""
    await client.delete("Namespace", "kube-node-lease")
    with pytest.raises(ApiError, match="may not be deleted"):
        await client.delete("Namespace", "kube-public")


async def test_a_suspended_job_may_still_be_changed(client: LocalClient) -> None:
    """KEP-2926. Once it has started its template is fixed."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
    await client.create({**job, "spec": {"suspend": True, "template": template}})
    elsewhere = {"spec": {"template": {"spec": {"nodeSelector": {"zone": "b"}}}}}
    changed = await client.patch("Job", "j", elsewhere)
    assert changed["spec"]["template"]["spec"]["nodeSelector"] == {"zone": "b"}
    await client.patch("Job", "j", {"status": {"startTime": "2024-01-01T00:00:00Z"}}, subresource="status")
    with pytest.raises(ApiError, match="immutable"):
        await client.patch("Job", "j", {"spec": {"template": {"spec": {"nodeSelector": {"zone": "c"}}}}})


async def test_a_gated_pod_may_be_sent_elsewhere(client: LocalClient) -> None:
    """KEP-3838."""
    await client.create(pod(schedulingGates=[{"name": "example.com/wait"}]))
    changed = await client.patch("Pod", "a", {"spec": {"nodeSelector": {"zone": "b"}}})
    assert changed["spec"]["nodeSelector"] == {"zone": "b"}
    await client.patch("Pod", "a", {"spec": {"schedulingGates": None}})
    with pytest.raises(ApiError, match="pod updates may not change"):
        await client.patch("Pod", "a", {"spec": {"nodeSelector": {"zone": "c"}}})


@pytest.mark.parametrize(
    ("status", "addresses"),
    [
        ({"podIP": "10.0.0.9"}, ["10.0.0.9"]),
        ({"podIPs": [{"ip": "10.0.0.8"}, {"ip": "fd00::8"}]}, ["10.0.0.1"]),
        ({"podIP": "10.0.0.8", "podIPs": [{"ip": "10.0.0.8"}, {"ip": "fd00::8"}]}, ["10.0.0.8", "fd00::8"]),
    ],
)
async def test_pod_ip_counts_where_the_two_fields_differ(
    client: LocalClient, status: Obj, addresses: list[str]
) -> None:
    """pkg/apis/core/v1/conversion.go, Convert_v1_PodStatus_To_core_PodStatus."""
    await client.create(pod())
    first = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    await client.patch("Pod", "a", {"status": first}, subresource="status")
    found = (await client.patch("Pod", "a", {"status": status}, subresource="status"))["status"]
    assert [entry["ip"] for entry in found["podIPs"]] == addresses
    assert found["podIP"] == addresses[0]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ("spec.hostNetwork=false", 1),
        ("spec.hostNetwork=true", 0),
        ("spec.serviceAccountName=", 1),
        ("status.nominatedNodeName!=x", 1),
    ],
)
async def test_pods_are_selected_by_every_field_that_kubernetes_knows(
    client: LocalClient, fields: str, count: int
) -> None:
    """pkg/registry/core/pod/strategy.go, ToSelectableFields."""
    await client.create(pod())
    assert len((await client.list("Pod", fields=fields)).items) == count
