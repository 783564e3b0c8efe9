from __future__ import annotations

from typing import Any

import pytest

from nodenet.lab import ready
from tests.unit.lab_nodes import objects as make


def workload(kind: str, spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    status = {"observedGeneration": 1, **status}
    return {"kind": kind, "metadata": {"namespace": "d", "name": "w", "generation": 1}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("kind", "spec", "status", "done"),
    [
        ("Deployment", {"replicas": 2}, {"readyReplicas": 2}, True),
        ("Deployment", {"replicas": 2}, {"readyReplicas": 1}, False),
        ("Deployment", {"replicas": 0}, {}, True),
        ("Deployment", {}, {}, False),
        ("Deployment", {"replicas": 1}, {"readyReplicas": 1, "observedGeneration": 0}, False),
        ("DaemonSet", {}, {"desiredNumberScheduled": 2, "numberReady": 2}, True),
        ("DaemonSet", {}, {}, False),
        ("Job", {"parallelism": 1}, {"ready": 1}, True),
        ("Job", {"parallelism": 1}, {"completionTime": "x"}, True),
    ],
)
def test_a_workload_is_waited_for(kind: str, spec: dict[str, Any], status: dict[str, Any], done: bool) -> None:
    progress = ready.progress([], [workload(kind, spec, status)])
    assert progress.done is done
    assert progress.waiting == (() if done else (f"{kind} d/w",))


def test_pods_are_counted_and_problems_reported() -> None:
    going = make.pod("c", ready=False)
    going["metadata"]["deletionTimestamp"] = "now"
    progress = ready.progress([make.pod("a"), make.pod("b", ready=False, message="no address"), going], [])
    assert (progress.ready, progress.total) == (1, 2)
    assert progress.problems == ("Pod default/b: no address",)


def test_a_service_without_endpoints_is_named_with_its_selector() -> None:
    services = [make.service("a"), make.service("b", selector={"x": "1", "app": "b"})]
    sentences = ready.without_endpoints(services, [make.endpoints("a", ["p"])])
    assert sentences == ["Service default/b: spec.selector: no ready pod matches app=b,x=1"]
