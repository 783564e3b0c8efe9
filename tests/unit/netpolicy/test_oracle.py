"""Truth tables that an independent reading of NetworkPolicy computed (tests/data/networkpolicy), twice: from the
policies alone, and through the compiled map entries as the datapath looks them up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from netpolicy.evaluate import Evaluator
from netpolicy.parse import network_policy
from netpolicy.party import Party, Traffic
from netpolicy.types import Protocol
from nodenet.model import Direction
from tests.unit.netpolicy.datapath import Packet
from tests.unit.netpolicy.world import compiled, datapath_of, policy_pod

CASES = Path(__file__).parents[2] / "data" / "networkpolicy" / "cases.jsonl"


def _cases() -> list[Any]:
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [pytest.param(case, id=f"{case['id']}-{case['description'].replace(' ', '_')}") for case in cases]


def _questions(step: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], int, str, bool, bool]]:
    """(from pod, to pod, port, protocol, egress verdict, ingress verdict) of every row, listed or not."""
    blocked = {(row[0], row[1], row[2], row[3]): (row[4], row[5]) for row in step["blocked"]}
    seen = 0
    for source in step["pods"]:
        for destination in step["pods"]:
            if source is destination:
                continue
            for port, protocol, _name in destination["ports"]:
                row = (_label(source), _label(destination), protocol, port)
                egress, ingress = (word == "allowed" for word in blocked.pop(row, ("allowed", "allowed")))
                seen += 1
                yield source, destination, port, protocol, egress, ingress
    assert not blocked
    assert seen == step["checked"]


def _label(pod: dict[str, Any]) -> str:
    return f"{pod['namespace']}/{pod['name']}"


@pytest.mark.parametrize("case", _cases())
def test_policies_alone(case: dict[str, Any]) -> None:
    for step in case["steps"]:
        evaluator = Evaluator([network_policy(p) for p in step["policies"]], step["namespaces"])
        parties = {id(pod): Party.of(policy_pod(pod), ip_address(pod["ip"])) for pod in step["pods"]}
        for source, destination, port, protocol, egress, ingress in _questions(step):
            traffic = Traffic(Protocol(protocol), port)
            verdict = evaluator.verdict(parties[id(source)], parties[id(destination)], traffic)
            found = (verdict.egress.allowed, verdict.ingress.allowed)
            assert found == (egress, ingress), (_label(source), _label(destination), traffic)


@pytest.mark.parametrize("case", _cases())
def test_compiled_entries(case: dict[str, Any]) -> None:
    for step in case["steps"]:
        datapath = datapath_of(step["pods"], compiled(step["pods"], step["namespaces"], step["policies"]))
        for source, destination, port, protocol, egress, ingress in _questions(step):
            packet = Packet(ip_address(source["ip"]), ip_address(destination["ip"]), protocol, port)
            found = tuple(datapath.rule(way, packet) is not None for way in (Direction.EGRESS, Direction.INGRESS))
            assert found == (egress, ingress), packet
