"""Flows to Services, counted once each though several programs report them."""

from __future__ import annotations

import pytest

from nodenet.abi import CtStatus, DropReason, EventType, ObservationPoint
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.flow.service_flows import ServiceFlows
from nodenet.flow.types import NameTable, ServiceName
from tests.unit.flow.conftest import BASE

NODE, POD = 11, 12


@pytest.mark.parametrize(
    ("changes", "opened"),
    [
        # What a pod sends: reported by its own interface, and by that of the pod that receives it.
        ({"type": EventType.POLICY_VERDICT, "direction": 2}, 1),
        ({"type": EventType.POLICY_VERDICT, "direction": 1}, 0),
        ({"type": EventType.POLICY_VERDICT, "direction": 2, "ct_status": CtStatus.ESTABLISHED}, 0),
        # It calls itself.
        ({"type": EventType.TRACE, "point": ObservationPoint.TO_ENDPOINT, "direction": 1}, 1),
        ({"type": EventType.TRACE, "direction": 1, "ct_status": CtStatus.REPLY, "is_reply": 1}, 0),
        # The call of a pod is followed by its packet; that of the node is not.
        ({"type": EventType.SOCK, "ifindex": 0, "cookie": POD}, 0),
        ({"type": EventType.SOCK, "ifindex": 0, "cookie": NODE}, 1),
    ],
)
def test_one_flow_counts_once(changes: dict[str, int], opened: int) -> None:
    flows = ServiceFlows(NODE)
    flows.note(BASE._replace(**{"service_id": 5, "ct_status": CtStatus.NEW, "reason": 0, **changes}), ())
    assert (flows.opened[5], flows.dropped[5]) == (opened, 0)


def test_traffic_from_outside_is_counted_apart() -> None:
    flows = ServiceFlows(NODE)
    came = {"type": EventType.TRACE, "point": ObservationPoint.FROM_NETWORK, "direction": 1, "service_id": 5}
    flows.note(BASE._replace(**came, ct_status=CtStatus.NEW, reason=0), ())
    flows.note(BASE._replace(type=EventType.DROP, reason=-158, direction=1, service_id=6), ())
    assert (flows.opened, flows.dropped) == ({}, {})
    assert (flows.opened_outside, flows.dropped_outside) == ({5: 1}, {6: 1})


def test_drops() -> None:
    flows = ServiceFlows(NODE)
    flows.note(BASE._replace(type=EventType.DROP, reason=-DropReason.SERVICE_BACKEND_NOT_FOUND, service_id=5), ())
    assert (flows.opened, flows.dropped) == ({}, {5: 1})


def test_calls_of_the_node_are_not_counted_if_its_cookie_is_not_known() -> None:
    flows = ServiceFlows(0)
    flows.note(BASE._replace(type=EventType.SOCK, ifindex=0, cookie=0, service_id=5, reason=0), ())
    assert flows.opened == {}


def test_numbers_of_deleted_services_are_forgotten() -> None:
    flows = ServiceFlows(NODE)
    for number in range(1, 10_000):
        flows.note(BASE._replace(type=EventType.DROP, reason=-158, service_id=number), {1, 2})
    assert len(flows.dropped) <= 4097
    assert flows.dropped[1] == 1


def test_the_pipeline_counts() -> None:
    pipeline = Pipeline(Ring(10), 0, lambda: NameTable(services={5: ServiceName("default", "web")}), NODE)
    base = {"type": EventType.POLICY_VERDICT, "direction": 2, "ct_status": CtStatus.NEW, "reason": 0}
    for number in (5, 5, 0):
        pipeline.receive(BASE._replace(**base, service_id=number).pack())
    assert pipeline.services.opened == {5: 2}
