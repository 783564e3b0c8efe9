"""Three tiers together: the engine, the compiled entries and a second reading of the specification agree."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.cluster import Node
from netpolicy.evaluate import Evaluator
from netpolicy.party import Traffic
from netpolicy.types import Protocol
from tests.unit.netpolicy import spec
from tests.unit.netpolicy.datapath import Packet
from tests.unit.netpolicy.strategies import NODES, PORTS, PROTOCOLS, cluster_policies, namespaces, pods, policies
from tests.unit.netpolicy.test_properties import _SLOW, pairs, party
from tests.unit.netpolicy.world import compiled, datapath_of, parsed

Obj = dict[str, Any]


def engine_nodes() -> list[Node]:
    return [Node(node["name"], tuple(map(ip_address, node["ips"])), (), node["labels"]) for node in NODES]


@settings(max_examples=150, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), cluster_policies(), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
def test_three_readings_agree(
    cluster: list[Obj],
    names: dict[str, dict[str, str]],
    own: list[Obj],
    wide: list[Obj],
    port: int,
    protocol: str,
) -> None:
    given_policies = own + wide
    evaluator = Evaluator(map(parsed, given_policies), names, engine_nodes())
    datapath = datapath_of(cluster, compiled(cluster, names, given_policies, nodes=engine_nodes()))
    for source, destination in pairs(cluster):
        wanted = spec.allowed(given_policies, names, source, destination, protocol, port, NODES)
        traffic = Traffic(Protocol(protocol), port)
        assert evaluator.verdict(party(source), party(destination), traffic).allowed is wanted
        packet = Packet(ip_address(source["ip"]), ip_address(destination["ip"]), protocol, port)
        assert datapath.allowed(packet) is wanted
