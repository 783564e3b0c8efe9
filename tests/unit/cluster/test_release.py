"""The objects of a release: the manifests with the values of --set."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from nodenet.cluster import release
from nodenet.cluster.changes import changes
from nodenet.cluster.kustomize import containers
from nodenet.cluster.release import Release
from nodenet.errors import BadInputError

Obj = dict[str, Any]
OVERLAY = "replace-kube-proxy"


def made(*words: str) -> dict[str, Obj]:
    found = release.objects(Release(OVERLAY, release.parse_values(words)))
    return {obj["kind"]: obj for obj in found if obj["metadata"]["name"] == "nodenet"}


def test_values_change_what_they_name() -> None:
    found = made(
        "image.repository=registry.example/nodenet",
        "image.tag=2",
        "image.pullPolicy=Always",
        "apiServers=192.0.2.1:6443,[2001:db8::1]:6443",
        "config.flow_events=false",
        "config.ct_entries=65536",
        "updateStrategy.rollingUpdate.maxUnavailable=3",
    )
    data = found["ConfigMap"]["data"]
    assert data["api-servers"] == "192.0.2.1:6443,[2001:db8::1]:6443"
    agent = yaml.safe_load(data["agent.yaml"])
    assert (agent["flow_events"], agent["ct_entries"]) == (False, 65536)
    assert "health_address" in agent
    assert {c["image"] for c in containers(found["DaemonSet"])} == {"registry.example/nodenet:2"}
    assert {c["imagePullPolicy"] for c in containers(found["DaemonSet"])} == {"Always"}
    assert found["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 3}


def test_a_registry_with_a_port_keeps_its_name() -> None:
    [image] = {c["image"] for c in containers(made("image.repository=localhost:5000/n")["DaemonSet"])}
    assert image.startswith("localhost:5000/n:")


def test_a_component_is_a_value() -> None:
    plain, monitored = (release.objects(Release(OVERLAY, values)) for values in ({}, {"monitoring.enabled": "true"}))
    assert {obj["kind"] for obj in monitored} - {obj["kind"] for obj in plain} == {
        "Service",
        "ServiceMonitor",
        "PrometheusRule",
    }


def test_the_namespace_comes_first_and_the_daemonset_after_its_configuration() -> None:
    kinds = [obj["kind"] for obj in release.objects(Release(OVERLAY))]
    assert kinds[0] == "Namespace"
    assert kinds.index("ConfigMap") < kinds.index("DaemonSet")


def test_pods_start_again_when_the_configuration_changes_and_only_then() -> None:
    def digest(*words: str) -> str:
        return str(made(*words)["DaemonSet"]["spec"]["template"]["metadata"]["annotations"][release.CONFIG_DIGEST])

    assert digest() == digest("updateStrategy.rollingUpdate.maxUnavailable=3")
    assert digest() != digest("config.flow_events=false")
    assert digest() != digest("apiServers=192.0.2.1:6443")


def test_an_installed_release_is_read_back() -> None:
    wanted = Release(OVERLAY, {"image.tag": "2", "config.flow_events": "false"})
    [daemon_set] = [obj for obj in release.objects(wanted) if obj["kind"] == "DaemonSet"]
    assert release.of(daemon_set) == wanted
    del daemon_set["metadata"]["annotations"]
    assert release.of(daemon_set) is None
    daemon_set["metadata"]["annotations"] = {release.RELEASE: "[]"}
    with pytest.raises(BadInputError, match=r"nodenet/nodenet: metadata\.annotations"):
        release.of(daemon_set)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("image.tag", "expected NAME=VALUE"),
        ("replicas=2", "expected NAME=VALUE; the names: image.repository"),
        ("config.KEY=1", "expected NAME=VALUE"),
        ("config.no_such_key=1", "no_such_key: unknown key"),
        ("config.ct_entries=many", "ct_entries: expected int"),
        ("monitoring.enabled=yes", "expected true or false"),
        ("apiServers=x y z", "expected HOST:PORT,..., got 'x y z'"),
        ("apiServers=192.0.2.1:6443,", "got ''"),
        ("apiServers=192.0.2.1:6443,[2001:db8::1", "got '[2001:db8::1'"),
        ("apiServers=192.0.2.1:99999", "got '192.0.2.1:99999'"),
        ("apiServers=https://192.0.2.1/path", "got 'https://192.0.2.1/path'"),
        ("config.masquerade_exclude=[", "expected a value in YAML"),
    ],
)
def test_a_wrong_value_is_named(word: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        release.parse_values([word])
    assert word in str(caught.value)
    assert message in str(caught.value)


def test_changes_name_the_field() -> None:
    before = {
        "metadata": {"resourceVersion": "1", "labels": {"a/b": "c"}},
        "spec": {"containers": [{"name": "x", "image": "1"}, {"name": "y", "image": "1"}], "n": [1]},
        "status": {"ready": 1},
    }
    after = {
        "metadata": {"resourceVersion": "2", "labels": {"a/b": "d"}},
        "spec": {"containers": [{"name": "y", "image": "1"}, {"name": "x", "image": "2"}], "n": [2], "m": "new"},
    }
    assert changes(before, after) == [
        "metadata.labels[a/b]: 'c' -> 'd'",
        "spec.containers[x].image: '1' -> '2'",
        "spec.m: (absent) -> 'new'",
        "spec.n: [1] -> [2]",
    ]
    assert changes(after, after) == []


def test_annotations_of_bookkeeping_are_no_change() -> None:
    before, after = ({"metadata": {"annotations": {release.RELEASE: text}}} for text in ("1", "2"))
    assert changes(before, after) == []
    assert changes({"metadata": {}}, after) == []
    assert changes(before, {"metadata": {"annotations": {"x": "y"}}}) == ["metadata.annotations.x: (absent) -> 'y'"]


def test_a_changed_text_is_shown_by_line() -> None:
    before, after = ({"data": {"f": text}} for text in ("a: 1\nb: 2\n", "a: 1\nb: 3\n"))
    assert changes(before, after) == ["data.f: - b: 2", "data.f: + b: 3"]
