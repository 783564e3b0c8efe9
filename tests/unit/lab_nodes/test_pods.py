from __future__ import annotations

from ipaddress import ip_address

import pytest

from nodenet.lab import pods
from nodenet.lab.pods import Port
from tests.unit.lab_nodes import objects as make


def test_ports_of_containers_and_sidecars_once_each() -> None:
    pod = make.pod("a", ports=[(80, "TCP"), (80, "UDP")])
    pod["spec"]["containers"].append({"name": "d", "ports": [{"containerPort": 80}, {"containerPort": 81}]})
    pod["spec"]["initContainers"] = [
        {"name": "once", "ports": [{"containerPort": 1}]},
        {"name": "beside", "restartPolicy": "Always", "ports": [{"containerPort": 2}]},
    ]
    assert pods.ports(pod) == [Port(2, "TCP"), Port(80, "TCP"), Port(80, "UDP"), Port(81, "TCP")]


def test_variables_are_those_that_kubelet_gives() -> None:
    redis = make.service("redis-primary", ips=["10.0.0.11"], ports=[{"port": 6379, "name": "db-port"}])
    assert pods.service_environment(make.pod("a"), [redis]) == {
        "REDIS_PRIMARY_SERVICE_HOST": "10.0.0.11",
        "REDIS_PRIMARY_SERVICE_PORT": "6379",
        "REDIS_PRIMARY_SERVICE_PORT_DB_PORT": "6379",
        "REDIS_PRIMARY_PORT": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP_PROTO": "tcp",
        "REDIS_PRIMARY_PORT_6379_TCP_PORT": "6379",
        "REDIS_PRIMARY_PORT_6379_TCP_ADDR": "10.0.0.11",
    }


def test_variables_tell_neither_other_namespaces_nor_headless_services() -> None:
    others = [make.service("b", "other"), make.service("c", ips=["None"]), make.service("kubernetes")]
    assert set(pods.service_environment(make.pod("a", "shop"), others)) >= {"KUBERNETES_SERVICE_HOST"}
    assert all(key.startswith("KUBERNETES_") for key in pods.service_environment(make.pod("a", "shop"), others))
    pod = make.pod("a")
    pod["spec"]["enableServiceLinks"] = False
    assert pods.service_environment(pod, [make.service("web")]) == {}


def test_an_ipv6_service_is_bracketed_in_urls() -> None:
    found = pods.service_environment(make.pod("a"), [make.service("w", ips=["fd00::1"])])
    assert found["W_PORT"] == "tcp://[fd00::1]:80"
    assert found["W_SERVICE_HOST"] == "fd00::1"


def test_environment_has_values_and_fields_of_the_pod() -> None:
    field = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    secret = {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    found = pods.environment(make.pod("a", env=[{"name": "PORT", "value": "8080"}, field, secret]), [])
    assert found == {"HOSTNAME": "a", "PORT": "8080", "NODE": "node1"}


def test_hosts_file_has_short_names_of_the_own_namespace_only() -> None:
    text = pods.hosts_file(make.pod("a", "shop", ips=["10.244.1.2"]), [make.service("web", "shop"), make.service("x")])
    assert "10.244.1.2 a\n" in text
    assert "10.96.0.9 web web.shop web.shop.svc web.shop.svc.cluster.local\n" in text
    assert "10.96.0.9 x.default x.default.svc x.default.svc.cluster.local\n" in text


def test_a_running_pod_tells_all_its_addresses_and_keeps_its_start_time() -> None:
    pod = make.pod("a", ready=False)
    pod["status"]["startTime"] = "earlier"
    ips = [ip_address("10.244.1.2"), ip_address("fd00::2")]
    status = pods.running_status(pod, "now", ips, [ip_address("172.30.0.11")], "id", 2)
    assert status["podIP"] == "10.244.1.2"
    assert [entry["ip"] for entry in status["podIPs"]] == ["10.244.1.2", "fd00::2"]
    assert status["startTime"] == "earlier"
    assert status["containerStatuses"][0]["restartCount"] == 2
    assert pods.ready({**pod, "status": status})


@pytest.mark.parametrize("reason", ["ContainerCreating", "CrashLoopBackOff"])
def test_a_waiting_pod_says_why(reason: str) -> None:
    pod = make.pod("a")
    status = pods.waiting_status(pod, "now", reason, "no address is left")
    (unready,) = [c for c in status["conditions"] if c["type"] == "Ready"]
    assert (unready["status"], unready["message"]) == ("False", "no address is left")
    told = {**pod, "status": {**pod["status"], **status}}
    assert pods.waiting_message(told) == "no address is left"
    assert not pods.ready(told)


def test_a_condition_that_did_not_change_keeps_its_time() -> None:
    pod = make.pod("a")
    first = {**pod, "status": pods.waiting_status(pod, "one", "X", "")}
    second = pods.waiting_status(first, "two", "X", "")
    assert {c["lastTransitionTime"] for c in second["conditions"]} == {"one"}


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_AUDIT",
        "PATH",
        "PYTHONPATH",
        "BASH_ENV",
        "BASH_FUNC_ls%%",
        "ENV",
        "GLIBC_TUNABLES",
        "IFS",
        "A B",
    ],
)
def test_a_variable_that_chooses_code_does_not_reach_a_program_of_the_host(name: str) -> None:
    pod = make.pod("a", env=[{"name": name, "value": "/tmp/evil"}, {"name": "PORT", "value": "1"}])
    assert pods.environment(pod, []) == {"HOSTNAME": "a", "PORT": "1"}
    assert pods.left_out(pod) == [name]


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        ({}, (False, False, "")),
        ({pods.STATUS: "manual", pods.SANDBOX: "none", pods.END: "Succeeded"}, (True, True, "Succeeded")),
        ({pods.STATUS: "x", pods.SANDBOX: "x", pods.END: "Running"}, (False, False, "")),
    ],
)
def test_annotations_hand_parts_of_a_pod_to_a_test(annotations: dict[str, str], found: tuple[bool, bool, str]) -> None:
    pod = make.pod("a")
    pod["metadata"]["annotations"] = annotations
    assert (pods.manual_status(pod), pods.without_sandbox(pod), pods.end_phase(pod)) == found


def test_a_container_that_ran_before_counts_as_a_restart() -> None:
    pod = make.pod("a")
    assert pods.restarts(pod) == 0
    pod["status"] = pods.waiting_status(pod, "now", "ContainerCreating", "", 2)
    assert pods.restarts(pod) == 2
    pod["status"] = pods.running_status(pod, "now", [ip_address("10.0.0.1")], [ip_address("1.1.1.1")], "c", 2)
    assert pods.restarts(pod) == 3


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_a_pod_that_is_over(phase: str, code: int) -> None:
    pod = make.pod("a")
    pod["status"] = pods.finished_status(pod, "now", phase, 1)
    assert pods.finished(pod)
    assert not pods.ready(pod)
    (container,) = pod["status"]["containerStatuses"]
    assert container["state"]["terminated"]["exitCode"] == code
    assert "podIPs" not in pod["status"]
