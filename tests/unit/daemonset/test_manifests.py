"""kustomize and the Helm chart render the same objects, which every supported version of the API accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.agent.settings import read_config
from nodenet.kinds import API_KINDS
from tests.rendered import DAEMONSET, OVERLAYS, helm, kustomize, kustomize_with, preset

Obj = dict[str, Any]
VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")
# Of the Prometheus operator: their schemas are not Kubernetes'.
_FOREIGN = {"ServiceMonitor", "PrometheusRule"}
# Component of kustomize -> value of the chart.
COMPONENTS: dict[str, Obj] = {
    "monitoring": {"monitoring": {"enabled": True}},
    "mount-bpffs": {"mountBpffs": True},
    "kernel-before-5.11": {"kernelBefore511": True},
}


def by_name(objects: list[Obj]) -> dict[tuple[str, str, str], Obj]:
    found = {(obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]): obj for obj in objects}
    assert len(found) == len(objects)
    return found


def one(objects: list[Obj], kind: str) -> Obj:
    [found] = [obj for obj in objects if obj["kind"] == kind]
    return found


def containers(objects: list[Obj]) -> list[Obj]:
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_renders_what_kustomize_does(overlay: str) -> None:
    assert by_name(helm(preset(overlay))) == by_name(kustomize(overlay))


@pytest.mark.parametrize("component", COMPONENTS)
def test_helm_renders_each_component(component: str, tmp_path: Path) -> None:
    values = preset("replace-kube-proxy") | COMPONENTS[component]
    wanted = by_name(kustomize_with(tmp_path, "replace-kube-proxy", component))
    assert by_name(helm(values)) == wanted
    assert wanted != by_name(kustomize("replace-kube-proxy"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_accepts_every_object(version: str, overlay: str, tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="not installed (PyPI: kubernetes-validate)")
    from kubernetes_validate.utils import all_versions

    assert any(known.startswith(f"{version}.") or known == version for known in all_versions())
    for obj in kustomize_with(tmp_path, overlay, "monitoring"):
        if obj["kind"] not in _FOREIGN:
            validate.validate(obj, version, strict=True)


def test_a_wrong_field_is_found(tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="not installed (PyPI: kubernetes-validate)")
    daemonset = one(kustomize("kind"), "DaemonSet")
    daemonset["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(validate.ValidationError, match="hostNetworks"):
        validate.validate(daemonset, VERSIONS[-1], strict=True)


def test_values_have_a_schema() -> None:
    sdk = pytest.importorskip("helm_python", reason="the Helm SDK is not installed (PyPI: helm-python-sdk)")
    for values in ({"apiServer": "10.0.0.1:6443"}, {"apiServers": ["a, b"]}, {"image": {"pullPolicy": "Sometimes"}}):
        with pytest.raises(sdk.HelmError):
            helm(values)


def test_helm_lint_finds_nothing() -> None:
    sdk = pytest.importorskip("helm_python", reason="the Helm SDK is not installed (PyPI: helm-python-sdk)")
    report = sdk.lint(str(DAEMONSET / "chart"), strict=True)
    # The project has no icon.
    messages = [message["error"] for message in report["messages"] if message["error"] != "icon is recommended"]
    assert (messages, report["errors"], report["total_charts_linted"]) == ([], [], 1)


def test_another_namespace_and_image_reach_every_object() -> None:
    values: Obj = {"namespace": {"name": "net", "create": False}}
    values |= {"image": {"repository": "registry.test/n", "tag": "9"}, "cni": {"confDir": "/srv/net.d"}}
    objects = helm(values | {"monitoring": {"enabled": True}})
    assert {obj["metadata"].get("namespace", "net") for obj in objects} == {"net"}
    assert "Namespace" not in {obj["kind"] for obj in objects}
    assert {container["image"] for container in containers(objects)} == {"registry.test/n:9"}
    volumes = one(objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    paths = {volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume}
    assert paths >= {"/srv/net.d", "/opt/cni/bin"}
    assert one(objects, "ClusterRoleBinding")["subjects"][0]["namespace"] == "net"
    assert one(objects, "ServiceMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["net"]}


def test_the_cluster_role_has_what_the_agent_reads_and_reports() -> None:
    rules = one(kustomize("replace-kube-proxy"), "ClusterRole")["rules"]
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    read = {(kind.resource.group, kind.resource.plural) for kind in API_KINDS}
    reads = {(group, plural, verb) for group, plural in read for verb in ("list", "watch")}
    # The report of the agent about its own Node (agent/node_report.py), and Events (agent/notices.py).
    writes = {("", "nodes", "get"), ("", "nodes", "patch"), ("", "nodes/status", "patch")}
    writes |= {("", "events", "create"), ("", "events", "patch")}
    # The condition of ClusterNetworkPolicies (agent/policy_status.py).
    policies = "policy.networking.k8s.io"
    writes |= {(policies, "clusternetworkpolicies", "get"), (policies, "clusternetworkpolicies/status", "patch")}
    assert granted == reads | writes
    text = (DAEMONSET.parent / "docs" / "operations.md").read_text()
    [documented] = re.findall(r"```yaml\n(rules:\n.*?)```", text, re.DOTALL)
    assert yaml.safe_load(documented)["rules"] == rules


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_has_few_rights(overlay: str) -> None:
    objects = kustomize(overlay)
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert not spec.keys() & {"hostPID", "hostIPC", "shareProcessNamespace"}
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(objects):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert "limits" not in container["resources"]
        assert container["imagePullPolicy"] == "IfNotPresent"
        if overlay == "kind" and container["name"] == "init":
            # Bidirectional needs it: components/mount-bpffs.
            assert context["privileged"] is True
            continue
        assert "privileged" not in context
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
    [agent] = spec["containers"]
    assert agent["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_agent_accepts_its_configuration(overlay: str, tmp_path: Path) -> None:
    data = one(kustomize(overlay), "ConfigMap")["data"]
    path = tmp_path / "agent.yaml"
    path.write_text(data["agent.yaml"])
    config = read_config(path, {"NODENET_NODE_NAME": "n1", "NODENET_API_SERVERS": data["api-servers"]})
    [agent] = one(kustomize(overlay), "DaemonSet")["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = agent[probe]["httpGet"]
        assert f"{asked['host']}:{asked['port']}" == config.health_address
    # The folders that the agent writes are mounted, because its root file system is read-only.
    mounted = {mount["mountPath"] for mount in agent["volumeMounts"] if not mount.get("readOnly")}
    for folder in (config.run_dir, config.cache_dir, config.bpffs.parent, config.cni_conf_dir):
        assert str(folder) in mounted
    assert str(config.ip_masq_agent_config.parent) in {mount["mountPath"] for mount in agent["volumeMounts"]}
    assert config.services == (overlay != "beside-kube-proxy")
