"""Manifests into a lab: judged together, applied in order, merged as kubectl does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet import manifests
from nodenet.errors import BadInputError
from nodenet.lab.apiserver.catalog import defined
from nodenet.lab.apiserver.http_client import HttpObjects
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.lab.apply import ApplySet, apply, delete, prepare
from nodenet.lab.kinds import judge

from .control_plane import LocalObjects, service, workload

Obj = dict[str, Any]
BOUTIQUE = Path(__file__).parents[4] / "shared" / "manifests" / "online-boutique"


def prepared(folder: Path, *objects: Obj) -> ApplySet:
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return prepare(manifests.load([file]))


def lines(results: list[Any]) -> list[str]:
    return [str(result) for result in results]


@pytest.fixture
def objects(api: ApiServer) -> LocalObjects:
    return LocalObjects(api.registry)


def test_created_configured_unchanged_deleted(tmp_path: Path, api: ApiServer, objects: LocalObjects) -> None:
    first = prepared(tmp_path, workload("Deployment", "web"), service("web"))
    assert lines(apply(objects, first)) == ["deployment.apps/web created", "service/web created"]
    version = api.storage.version
    assert lines(apply(objects, first)) == ["deployment.apps/web unchanged", "service/web unchanged"]
    assert api.storage.version == version
    second = prepared(tmp_path, workload("Deployment", "web", 3), service("web"))
    assert lines(apply(objects, second)) == ["deployment.apps/web configured", "service/web unchanged"]
    assert lines(delete(objects, second)) == ["service/web deleted", "deployment.apps/web deleted"]
    assert lines(delete(objects, second)) == ["service/web not found", "deployment.apps/web not found"]


def test_namespaces_first_and_missing_ones_made(tmp_path: Path, objects: LocalObjects) -> None:
    inside, elsewhere = service("web"), service("api")
    inside["metadata"]["namespace"], elsewhere["metadata"]["namespace"] = "shop", "nowhere"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    found = prepared(tmp_path, inside, elsewhere, namespace)
    assert found.namespaces == ("nowhere",)
    assert lines(apply(objects, found)) == [
        "namespace/nowhere created (no manifest declares it)",
        "namespace/shop created",
        "service/web created",
        "service/api created",
    ]


def test_a_merge_keeps_what_others_set(tmp_path: Path, api: ApiServer, objects: LocalObjects) -> None:
    obj = service("web", {"port": 80, "name": "a"}, {"port": 81, "name": "b"}, type="NodePort")
    obj["metadata"]["labels"] = {"mine": "1", "old": "2"}
    apply(objects, prepared(tmp_path, obj))
    resource = judge("v1", "Service").resource
    assert resource is not None
    before = objects.get(resource, "default", "web")
    assert before is not None
    before["metadata"]["labels"]["theirs"] = "3"
    objects.update(resource, before)
    obj["metadata"]["labels"] = {"mine": "1"}
    del obj["spec"]["ports"][0]
    apply(objects, prepared(tmp_path, obj))
    after = objects.get(resource, "default", "web")
    assert after is not None
    assert after["metadata"]["labels"] == {"mine": "1", "theirs": "3"}
    assert after["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    assert after["spec"]["ports"] == [before["spec"]["ports"][1]]


def test_nothing_is_applied_when_one_is_bad(tmp_path: Path, api: ApiServer, objects: LocalObjects) -> None:
    version = api.storage.version
    bad = workload("Deployment", "bad", replicas=-1)
    with pytest.raises(BadInputError) as error:
        prepared(tmp_path, service("web"), bad, service("also-bad", {"port": 0}))
    assert error.value.exit_code == 2
    where = tmp_path / "objects.yaml"
    assert str(error.value).splitlines() == [
        f"{where} (document 2): Deployment default/bad: spec.replicas: Invalid value: -1: "
        "must be greater than or equal to 0",
        f"{where} (document 3): Service default/also-bad: spec.ports[0].port: Invalid value: 0: "
        "must be between 1 and 65535, inclusive",
    ]
    # What only the server can know is asked for before the first write.
    apply(objects, prepared(tmp_path, service("web")))
    version = api.storage.version
    with pytest.raises(BadInputError, match=r"Service default/far: spec.clusterIPs: .*not in the valid range"):
        apply(objects, prepared(tmp_path, service("new"), service("far", clusterIP="192.0.2.1")))
    assert api.storage.version == version


def test_two_services_cannot_share(tmp_path: Path) -> None:
    one = service("a", {"port": 80, "nodePort": 30000}, type="NodePort")
    two = service("b", {"port": 80, "nodePort": 30000}, type="NodePort")
    with pytest.raises(BadInputError, match=r"nodePort: 30000 is that of Service default/a"):
        prepared(tmp_path, one, two)


def test_skipped_kinds_are_named_with_their_number(tmp_path: Path) -> None:
    def of(api_version: str, kind: str, name: str) -> Obj:
        return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}

    found = prepared(
        tmp_path,
        *(of("v1", "ServiceAccount", f"a{n}") for n in range(3)),
        of("networking.istio.io/v1", "VirtualService", "v"),
        of("policy/v1beta1", "PodDisruptionBudget", "p"),
        service("web"),
    )
    assert found.skipped == (
        "PodDisruptionBudget x1 (the lab does not know this kind)",
        "ServiceAccount x3 (the lab does not know this kind)",
        "VirtualService.networking.istio.io x1 (a custom resource without a CustomResourceDefinition)",
    )
    assert len(found.objects) == 1


@pytest.mark.parametrize(
    ("api_version", "kind", "wanted"),
    [
        ("apps/v1", "Deploymnet", "kind: apps/v1 has no kind Deploymnet (did you mean Deployment?)"),
        ("apps/v1", "deployment", "kind: apps/v1 has no kind deployment (did you mean Deployment?)"),
        ("apps/v1beta1", "Deployment", "apiVersion: apps/v1beta1 has no Deployment (did you mean apps/v1?)"),
        ("extensions/v1beta1", "Deployment", "apiVersion: there is no extensions/v1beta1 (did you mean apps/v1?)"),
        ("v1", "Deployment", "apiVersion: v1 has no kind Deployment (did you mean apiVersion: apps/v1?)"),
        ("app/v1", "Deployment", "apiVersion: there is no app/v1 (did you mean apps/v1?)"),
        ("apps/v1", "Service", "apiVersion: apps/v1 has no kind Service (did you mean apiVersion: v1?)"),
        (
            "networking.k8s/v1",
            "NetworkPolicy",
            "apiVersion: networking.k8s/v1 has no NetworkPolicy in Kubernetes (did you mean networking.k8s.io/v1?)",
        ),
        ("v1", "Zebra", "kind: v1 has no kind Zebra"),
        ("v1x", "ConfigMap", "apiVersion: expected a version such as v1, got 'v1x'"),
    ],
)
def test_mistakes_in_kinds(api_version: str, kind: str, wanted: str) -> None:
    assert judge(api_version, kind).problem == wanted


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [("serving.knative.dev/v1", "Service"), ("crd.projectcalico.org/v1", "NetworkPolicy"), ("v1", "Secret")],
)
def test_kinds_that_are_passed_over(api_version: str, kind: str) -> None:
    assert judge(api_version, kind).skipped


def test_unknown_fields_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"unknown field spec.selectr \(did you mean selector\?\)"):
        prepared(tmp_path, service("web", selectr={"a": "b"}))


async def test_over_http(tmp_path: Path, api: ApiServer) -> None:
    found = prepared(tmp_path, workload("Deployment", "web"), service("web"))
    told: list[list[str]] = []

    def work(port: int) -> None:
        objects = HttpObjects("127.0.0.1", port)
        told.extend([lines(apply(objects, found)), lines(apply(objects, found)), lines(delete(objects, found))])
        objects.close()

    async with serve(api, addresses=[("127.0.0.1", 0)]) as server:
        await asyncio.to_thread(work, server.ports[0])
    assert told == [
        ["deployment.apps/web created", "service/web created"],
        ["deployment.apps/web unchanged", "service/web unchanged"],
        ["service/web deleted", "deployment.apps/web deleted"],
    ]


@pytest.mark.skipif(not BOUTIQUE.exists(), reason="the Online Boutique manifests are not here")
def test_online_boutique(objects: LocalObjects) -> None:
    found = prepare(manifests.load([BOUTIQUE]))
    assert found.skipped == ("ServiceAccount x11 (the lab does not know this kind)",)
    kinds = [manifest.kind for manifest in found.objects]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"Deployment": 12, "Service": 12, "NetworkPolicy": 13}
    assert all(result.action == "created" for result in apply(objects, found))
    assert all(result.action == "unchanged" for result in apply(objects, found))


def test_an_object_that_is_described_twice_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"\(document 2\): Service default/web: is in .*\(document 1\) already"):
        prepared(tmp_path, service("web"), service("web"))


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "tenants.policy.example.com"},
    "spec": {
        "group": "policy.example.com",
        "scope": "Namespaced",
        "names": {"plural": "tenants", "kind": "Tenant"},
        "versions": [{"name": "v1", "served": True, "storage": True}],
    },
}
TENANT = {"apiVersion": "policy.example.com/v1", "kind": "Tenant", "metadata": {"name": "a"}, "spec": {"x": [1]}}


def test_a_definition_and_its_objects_in_one_set(tmp_path: Path, objects: LocalObjects) -> None:
    """The definition comes first, whatever the order of the files; later it is the lab that knows it."""
    both = prepared(tmp_path, TENANT, CRD)
    assert [str(result) for result in apply(objects, both)] == [
        "customresourcedefinition.apiextensions.k8s.io/tenants.policy.example.com created",
        "tenant.policy.example.com/a created",
    ]
    changed = {**TENANT, "spec": {"y": 2}}
    assert prepared(tmp_path, changed).skipped == (
        "Tenant.policy.example.com x1 (a custom resource without a CustomResourceDefinition)",
    )
    manifest = tmp_path / "again.yaml"
    manifest.write_text(yaml.safe_dump(changed))
    again = prepare(manifests.load([manifest]), custom=defined(CRD))
    assert [result.action for result in apply(objects, again)] == ["configured"]
    assert objects.get(defined(CRD)[0], "default", "a")["spec"] == {"y": 2}  # type: ignore[index]
    assert [result.action for result in apply(objects, again)] == ["unchanged"]
    assert [result.action for result in delete(objects, both)] == ["deleted", "deleted"]


def test_a_definition_that_is_wrong_is_named(tmp_path: Path) -> None:
    wrong = {**CRD, "metadata": {"name": "other"}}
    with pytest.raises(BadInputError, match=r"CustomResourceDefinition.*metadata\.name"):
        prepared(tmp_path, wrong, TENANT)


def test_policies_of_other_apis_are_a_warning(tmp_path: Path) -> None:
    others = (
        ("cilium.io/v2", "CiliumNetworkPolicy"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicy"),
    )
    texts = [f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\n" for api, kind in others]
    file = tmp_path / "policies.yaml"
    file.write_text("---\n".join(texts))
    prepared = prepare(manifests.load([file]))
    assert prepared.objects == ()
    assert "3 policies of other APIs are not evaluated and not enforced" in prepared.warning
    assert "CiliumNetworkPolicy (1), GlobalNetworkPolicy (1), NetworkPolicy (1)" in prepared.warning
