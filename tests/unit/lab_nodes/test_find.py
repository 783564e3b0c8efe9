from __future__ import annotations

from typing import Any

import pytest

from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import find, goals
from nodenet.lab.pods import Port
from tests.unit.lab_nodes import objects as make

PODS = [
    make.pod("web-5d8-aaa", "shop", owner=("ReplicaSet", "web-5d8"), labels={"pod-template-hash": "5d8"}),
    make.pod("web-5d8-bbb", "shop", owner=("ReplicaSet", "web-5d8"), labels={"pod-template-hash": "5d8"}),
    make.pod("web-admin-6c9-ccc", "shop", owner=("ReplicaSet", "web-admin-6c9"), labels={"pod-template-hash": "6c9"}),
    make.pod("db-0", "shop", owner=("StatefulSet", "db"), ips=["10.244.1.9"], ports=[(5432, "TCP")]),
    make.pod("web", "default", ips=["10.244.1.2"]),
]


@pytest.mark.parametrize(
    ("word", "namespace", "expected"),
    [
        ("web", "default", "default/web"),
        ("shop/web", "default", "shop/web-5d8-aaa"),
        ("web", "shop", "shop/web-5d8-aaa"),
        ("deploy/web-admin", "shop", "shop/web-admin-6c9-ccc"),
        ("shop/deploy/web-admin", "default", "shop/web-admin-6c9-ccc"),
        ("sts/db", "shop", "shop/db-0"),
        ("web-5d8-b", "shop", "shop/web-5d8-bbb"),
        ("pod/db-0", "shop", "shop/db-0"),
    ],
)
def test_a_pod_by_name_workload_or_start_of_its_name(word: str, namespace: str, expected: str) -> None:
    assert find.full_name(find.pod(PODS, word, namespace)) == expected


def test_a_pod_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(BadInputError, match="no pod 'nope' in namespace default") as caught:
        find.pod(PODS, "nope", "default")
    assert "web" in caught.value.hint


def test_a_pod_that_is_going_is_not_meant() -> None:
    going = make.pod("web-0")
    going["metadata"]["deletionTimestamp"] = "now"
    assert find.pod([going, make.pod("web-1")], "web", "default")["metadata"]["name"] == "web-1"


def goal(target: str, *more: dict[str, Any], port: Port | None = None) -> goals.Goal:
    return goals.resolve([*PODS, *more], make.pod("s", ips=["10.244.1.3"]), target, port, "shop")


def test_a_service_leads_to_its_first_ready_endpoint_on_the_right_port() -> None:
    service = make.service("db", "shop", ports=[{"port": 5, "name": "a"}, {"port": 80, "name": "b"}])
    slices = [
        make.endpoints("db", ["10.244.1.9"], "shop", 111, "a"),
        make.endpoints("db", ["10.244.1.9"], "shop", 222, "b"),
        make.endpoints("other", ["10.244.9.9"], "shop", 333, "b"),
    ]
    found = goal("svc/db.shop", service, *slices, port=Port(80, "TCP"))
    assert (found.address, found.port, found.backend_port) == ("10.96.0.9", Port(80, "TCP"), Port(222, "TCP"))
    assert found.pod is not None
    assert find.full_name(found.pod) == "shop/db-0"
    assert goal("svc/db", service, *slices).port == Port(5, "TCP")


def test_a_service_without_endpoints_says_which_field_matches_nothing() -> None:
    found = goal("svc/db", make.service("db", "shop"))
    assert found.note == "Service shop/db: spec.selector: no ready pod matches app=db"
    assert found.pod is None


def test_a_port_that_the_service_does_not_have_is_reported() -> None:
    found = goal("svc/db", make.service("db", "shop"), port=Port(99, "UDP"))
    assert found.note == "Service shop/db: spec.ports: no 99/UDP, it has 80/TCP"


def test_an_address_needs_a_port() -> None:
    with pytest.raises(BadInputError, match="expected a port"):
        goal("192.0.2.1")
    port = Port(80, "TCP")
    assert goal("192.0.2.1", port=port) == goals.Goal("192.0.2.1", "192.0.2.1", port, "192.0.2.1", port)


def test_an_endpoint_that_is_no_pod_is_judged_by_its_address() -> None:
    found = goal("svc/ext", make.service("ext", "shop"), make.endpoints("ext", ["172.30.0.1"], "shop", 6443))
    assert (found.backend, found.backend_port, found.pod, found.note) == ("172.30.0.1", Port(6443, "TCP"), None, "")


def test_a_pods_first_declared_port_is_meant() -> None:
    assert goal("db-0").port == Port(5432, "TCP")


def test_a_family_that_the_source_does_not_have_is_reported() -> None:
    with pytest.raises(BadInputError, match=r"spec\.clusterIP"):
        goal("svc/db", make.service("db", "shop", ips=["fd00::9"]))


def test_a_source_without_an_address_is_the_one_that_is_named() -> None:
    with pytest.raises(CannotRunError, match=r"pod default/s: status\.podIPs: .* no room"):
        goals.resolve(PODS, make.pod("s", message="no room"), "shop/db-0", None, "shop")


def test_a_start_that_fits_several_workloads_is_asked_about() -> None:
    with pytest.raises(BadInputError, match="could be any of: db-0, web-5d8-aaa") as caught:
        find.pod(PODS, "", "shop")
    assert caught.value.exit_code == 2
    assert find.full_name(find.pod(PODS, "web-5d8", "shop")) == "shop/web-5d8-aaa"
