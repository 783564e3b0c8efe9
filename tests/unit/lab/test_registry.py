"""What the API endpoint lets in, fills in, refuses and takes out again."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.registry import Options, Patch, PatchType, Unknown
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import ApiError

Obj = dict[str, Any]


def pod(name: str = "web", **spec: Any) -> Obj:
    body = {"containers": [{"name": "main", "image": "example/web"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}


def deployment(name: str = "web", **spec: Any) -> Obj:
    template = {"metadata": {"labels": {"app": name}}, "spec": pod()["spec"]}
    body = {"selector": {"matchLabels": {"app": name}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": body}


def service(name: str = "web", **spec: Any) -> Obj:
    body = {"ports": [{"port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def policy(name: str = "web", **spec: Any) -> Obj:
    metadata = {"name": name}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.fixture
def client(api: ApiServer) -> LocalClient:
    return api.client


async def refused(client: LocalClient, obj: Obj) -> ApiError:
    with pytest.raises(ApiError) as error:
        await client.create(obj)
    return error.value


async def test_create_fills_in_what_the_server_decides(client: LocalClient) -> None:
    made = await client.create(pod())
    metadata = made["metadata"]
    assert metadata["namespace"] == "default"
    assert metadata["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert len(metadata["uid"]) == 36
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert made["spec"]["restartPolicy"] == "Always"
    assert list(made)[:3] == ["apiVersion", "kind", "metadata"]


async def test_the_four_namespaces_exist_and_stay(client: LocalClient) -> None:
    names = [n["metadata"]["name"] for n in (await client.list("Namespace")).items]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system"]
    with pytest.raises(ApiError, match="may not be deleted"):
        await client.delete("Namespace", "default")


async def test_a_namespace_is_labelled_with_its_name(client: LocalClient) -> None:
    made = await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    assert made["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}
    changed = await client.patch("Namespace", "shop", {"metadata": {"labels": None}})
    assert changed["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}


async def test_versions_are_one_counter(client: LocalClient) -> None:
    first = await client.create(pod("a"))
    second = await client.create(service("b"))
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1


async def test_what_a_caller_does_to_its_copy_stays_its_own(client: LocalClient) -> None:
    given = pod()
    made = await client.create(given)
    made["spec"]["containers"].clear()
    given["spec"]["containers"][0]["image"] = "other"
    (await client.list("Pod")).items[0]["metadata"]["name"] = "other"
    assert (await client.get("Pod", "web"))["spec"]["containers"][0]["image"] == "example/web"


async def test_generate_name(client: LocalClient) -> None:
    obj = pod()
    obj["metadata"] = {"generateName": "web-"}
    names = {(await client.create(obj))["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


async def test_the_same_name_twice_is_a_conflict(client: LocalClient) -> None:
    await client.create(pod())
    error = await refused(client, pod())
    assert (error.code, error.reason) == (409, "AlreadyExists")
    assert str(error) == 'pods "web" already exists'


async def test_an_object_needs_its_namespace(client: LocalClient) -> None:
    obj = pod()
    obj["metadata"]["namespace"] = "nowhere"
    error = await refused(client, obj)
    assert (error.code, str(error)) == (404, 'namespaces "nowhere" not found')


async def test_nothing_new_in_a_namespace_that_ends(client: LocalClient) -> None:
    await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    await client.delete("Namespace", "shop")
    obj = pod()
    obj["metadata"]["namespace"] = "shop"
    error = await refused(client, obj)
    assert error.code == 403
    assert "being terminated" in str(error)


async def test_all_problems_are_reported_together(client: LocalClient) -> None:
    bad = service("Bad_Name", ports=[{"port": 99999}, {"port": 80, "protocol": "ICMP"}], type="Cluster")
    error = await refused(client, bad)
    assert (error.code, error.reason, error.exit_code) == (422, "Invalid", 2)
    assert [cause.field for cause in error.causes] == [
        "metadata.name",
        "spec.type",
        "spec.ports[0].name",
        "spec.ports[0].port",
        "spec.ports[1].name",
        "spec.ports[1].protocol",
    ]
    status = error.to_status()
    assert status["details"]["kind"] == "Service"
    assert len(status["details"]["causes"]) == 6


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (pod("-x"), "metadata.name"),
        (pod("x", containers=[]), "spec.containers"),
        (pod("x", containers=[{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]), "spec.containers[1].name"),
        (
            pod("x", containers=[{"name": "a", "image": "i", "ports": [{"containerPort": 0}]}]),
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            pod("x", containers=[{"name": "a", "image": "i", "ports": [{"containerPort": 1, "protocol": "tcp"}]}]),
            "spec.containers[0].ports[0].protocol",
        ),
        (deployment(replicas=-1), "spec.replicas"),
        (deployment(selector={"matchLabels": {"app": "other"}}), "spec.template.metadata.labels"),
        (deployment(selector={}), "spec.selector"),
        (deployment(strategy={"type": "Slowly"}), "spec.strategy.type"),
        (service(clusterIP="1.2.3"), "spec.clusterIP"),
        (service(clusterIP="192.0.2.1"), "spec.clusterIPs"),
        (service(ports=[]), "spec.ports"),
        (service(ports=[{"port": 80, "nodePort": 30001}]), "spec.ports[0].nodePort"),
        (service(type="NodePort", ports=[{"port": 80, "nodePort": 80}]), "spec.ports[0].nodePort"),
        (service(type="ExternalName"), "spec.externalName"),
        (service(selector={"a b": "c"}), "spec.selector"),
        (service(ipFamilies=["IPv6"]), "spec.ipFamilies[0]"),
        (service(ipFamilyPolicy="RequireDualStack"), "spec.ipFamilyPolicy"),
        (policy(podSelector={"matchLabels": {"a": "b c"}}), "spec.podSelector.matchLabels[a]"),
        (policy(ingress=[{}, {"ports": [{}, {"port": 99999}]}]), "spec.ingress[1].ports[1].port"),
        (policy(egress=[{"to": [{}, {"ipBlock": {"cidr": "10.0.0.0/33"}}]}]), "spec.egress[0].to[0]"),
    ],
)
async def test_a_bad_field_is_named(client: LocalClient, obj: Obj, field: str) -> None:
    error = await refused(client, obj)
    assert error.code == 422
    assert field in [cause.field for cause in error.causes], error.causes


async def test_problems_of_all_rules_of_a_policy_are_reported(client: LocalClient) -> None:
    error = await refused(
        client,
        policy(
            ingress=[{"ports": [{"port": 99999}, {"port": 80, "endPort": 1}]}],
            egress=[{"to": [{"ipBlock": {"cidr": "x"}}]}],
        ),
    )
    assert [cause.field for cause in error.causes] == [
        "spec.ingress[0].ports[0].port",
        "spec.ingress[0].ports[1].endPort",
        "spec.egress[0].to[0].ipBlock.cidr",
    ]


async def test_addresses_that_api_servers_accept_are_accepted(client: LocalClient) -> None:
    """Leading zeros and IPv4-mapped prefixes: their older checks take them, and what they store reaches the agent."""
    cidrs = ["::ffff:192.168.0.0/112", "010.0.0.0/8"]
    created = await client.create(policy(ingress=[{"from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}]))
    assert [peer["ipBlock"]["cidr"] for peer in created["spec"]["ingress"][0]["from"]] == cidrs
    for family, addresses in (("IPv4", ["010.0.0.1", "::ffff:10.0.0.1"]), ("IPv6", ["2001:0db8::00001"])):
        slice_ = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": family.lower(), "namespace": "default"},
            "addressType": family,
            "endpoints": [{"addresses": [address]} for address in addresses],
            "ports": [],
        }
        assert (await client.create(slice_))["metadata"]["name"] == family.lower()


async def test_a_wrong_type_is_a_bad_request_with_its_path(client: LocalClient) -> None:
    error = await refused(client, deployment(replicas="3"))
    assert error.code == 400
    assert 'spec.replicas: expected integer, got string "3"' in str(error)


async def test_unknown_fields_are_refused_or_warned_of_and_dropped(api: ApiServer) -> None:
    obj = service(selectr={"a": "b"})
    with pytest.raises(ApiError, match=r"unknown field spec.selectr \(did you mean selector\?\)"):
        await api.client.create(obj, strict=True)
    warnings: list[str] = []
    stored = api.registry.create(obj, options=Options(unknown=Unknown.WARN, warnings=warnings))
    assert warnings == ["unknown field spec.selectr (did you mean selector?)"]
    assert "selectr" not in stored.decode()["spec"]


async def test_an_unknown_kind_is_not_found(client: LocalClient) -> None:
    error = await refused(client, {"apiVersion": "apps/v1", "kind": "Deploymnet", "metadata": {"name": "x"}})
    assert (error.code, str(error)) == (404, "no matches for kind 'Deploymnet' in version 'apps/v1'")


async def test_a_stale_version_conflicts_and_none_wins(client: LocalClient) -> None:
    old = await client.create(deployment())
    await client.update({**old, "spec": {**old["spec"], "replicas": 2}})
    with pytest.raises(ApiError, match="the object has been modified") as error:
        await client.update({**old, "spec": {**old["spec"], "replicas": 3}})
    assert error.value.code == 409
    unversioned = {**old, "metadata": {"name": "web", "namespace": "default"}}
    assert (await client.update(unversioned))["metadata"]["uid"] == old["metadata"]["uid"]


async def test_an_update_that_changes_nothing_has_no_new_version(client: LocalClient) -> None:
    old = await client.create(deployment())
    assert await client.update(old) == old
    assert await client.patch("Deployment", "web", {"spec": {"replicas": 1}}) == old


async def test_generation_counts_only_changes_of_the_spec(client: LocalClient) -> None:
    await client.create(deployment())
    labelled = await client.patch("Deployment", "web", {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    scaled = await client.patch("Deployment", "web", {"spec": {"replicas": 2}})
    assert scaled["metadata"]["generation"] == 2


async def test_status_and_the_rest_are_written_apart(client: LocalClient) -> None:
    made = await client.create({**pod(), "status": {"phase": "Running"}})
    assert made["status"]["phase"] == "Pending"
    both = {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}
    done = await client.patch("Pod", "web", both, subresource="status")
    assert done["status"]["phase"] == "Running"
    assert "labels" not in done["metadata"]
    done = await client.patch("Pod", "web", both)
    assert done["metadata"]["labels"] == {"a": "b"}
    assert done["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    ("kind", "obj", "patch", "field"),
    [
        ("Pod", pod(), {"spec": {"nodeName": "n"}}, "spec"),
        ("Deployment", deployment(), {"spec": {"selector": {"matchLabels": {"x": "y"}}}}, "spec.selector"),
        ("Service", service(), {"spec": {"clusterIP": "10.96.0.99"}}, "spec.clusterIPs[0]"),
    ],
)
async def test_some_fields_never_change(client: LocalClient, kind: str, obj: Obj, patch: Obj, field: str) -> None:
    await client.create(obj)
    with pytest.raises(ApiError) as error:
        await client.patch(kind, "web", patch)
    assert error.value.code == 422
    assert field in [cause.field for cause in error.value.causes]


async def test_a_pod_on_a_node_waits_for_its_kubelet(client: LocalClient) -> None:
    await client.create(pod(terminationGracePeriodSeconds=7))
    await client.bind("web", "default", "node1")
    await client.delete("Pod", "web")
    going = await client.get("Pod", "web")
    assert going["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:27Z"
    assert going["metadata"]["deletionGracePeriodSeconds"] == 7
    await client.delete("Pod", "web")
    assert await client.get("Pod", "web") == going
    with pytest.raises(ApiError, match="Precondition failed"):
        await client.delete("Pod", "web", grace=0, uid="another")
    await client.delete("Pod", "web", grace=0, uid=going["metadata"]["uid"])
    with pytest.raises(ApiError, match='pods "web" not found'):
        await client.get("Pod", "web")


async def test_a_pod_on_no_node_goes_at_once(client: LocalClient) -> None:
    await client.create(pod())
    await client.delete("Pod", "web")
    assert (await client.list("Pod")).items == []


async def test_finalizers_hold_an_object_until_they_are_gone(client: LocalClient) -> None:
    obj = pod()
    obj["metadata"]["finalizers"] = ["example.com/hold"]
    await client.create(obj)
    await client.delete("Pod", "web")
    assert "deletionTimestamp" in (await client.get("Pod", "web"))["metadata"]
    await client.patch("Pod", "web", {"metadata": {"finalizers": None}})
    assert (await client.list("Pod")).items == []


async def test_a_dry_run_leaves_nothing(api: ApiServer, client: LocalClient) -> None:
    version = api.storage.version
    made = await client.create(service(type="NodePort"), dry_run=True)
    assert made["spec"]["clusterIP"]
    assert api.storage.version == version
    again = await client.create(service(type="NodePort"))
    assert again["spec"]["ports"] == made["spec"]["ports"]


async def test_server_side_apply_removes_what_its_manager_leaves_out(api: ApiServer) -> None:
    from nodenet.lab.apiserver.resources import BY_KIND

    resource = BY_KIND["Service"]
    first = service(selector={"app": "web"}, ports=[{"port": 80}, {"port": 81, "name": "b"}])
    first["spec"]["ports"][0]["name"] = "a"
    mine = Options(manager="me")
    api.registry.patch(resource, "default", "web", Patch(PatchType.APPLY, first), options=mine)
    await api.client.patch("Service", "web", {"metadata": {"labels": {"by": "somebody"}}})
    second = service(ports=[{"port": 81, "name": "b"}])
    done = api.registry.patch(resource, "default", "web", Patch(PatchType.APPLY, second), options=mine).decode()
    assert [port["port"] for port in done["spec"]["ports"]] == [81]
    assert "selector" not in done["spec"]
    assert done["metadata"]["labels"] == {"by": "somebody"}
