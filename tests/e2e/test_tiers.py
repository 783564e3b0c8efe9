"""The three tiers of policy on real traffic: the engine, a second reading of the specification and probes agree.

Nine pods in three namespaces on two nodes, TCP and UDP. `make tiers` tries 300 cases; NODENET_TIERS is their number,
and NODENET_TIERS_SEED gives others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from netpolicy import matrix, objects
from netpolicy.cluster import ContainerPort
from netpolicy.types import Protocol
from tests.e2e.labs import Lab, running
from tests.e2e.tier_cases import NAMESPACES, PORTS, PROTOCOLS, Cases, pods
from tests.unit.netpolicy import spec

NUMBER = int(os.environ.get("NODENET_TIERS", "4"))
SEED = int(os.environ.get("NODENET_TIERS_SEED", "1"))
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]
Obj = dict[str, Any]
# Source, destination, port and protocol.
Point = tuple[str, str, int, str]
_PROBED = ",".join(f"{port}/{protocol.lower()}" for port in PORTS for protocol in PROTOCOLS)


@dataclass(frozen=True)
class World:
    """The lab, its objects without policies, and the pods as the second reading wants them."""

    lab: Lab
    objects: list[Obj]
    pods: list[Obj]
    cases: Cases


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    given: list[Obj] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in NAMESPACES.items()
    ]
    for pod in pods():
        ports = [{"containerPort": n, "protocol": protocol, "name": name} for n, protocol, name in pod["ports"]]
        metadata = {key: pod[key] for key in ("namespace", "name", "labels")}
        containers = [{"name": "c", "image": "stand-in", "ports": ports}]
        given.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}})
    manifest = tmp_path_factory.mktemp("tiers") / "pods.yaml"
    manifest.write_text(yaml.safe_dump_all(given))
    with running("tiers", "--nodes", "2", "-f", manifest) as lab:
        live = [item for kind in ("namespaces", "nodes") for item in lab.json("get", kind)["items"]]
        live += [item for name in NAMESPACES for item in lab.pods(name)]
        addresses = {
            (item["metadata"]["namespace"], item["metadata"]["name"]): item["status"]["podIP"]
            for item in live
            if item["kind"] == "Pod"
        }
        found = [{**pod, "ip": addresses[pod["namespace"], pod["name"]]} for pod in pods()]
        networks = [item["spec"]["podCIDR"] for item in live if item["kind"] == "Node"]
        yield World(lab, live, found, Cases(SEED, sorted(addresses.values()), networks))


def computed(world: World, policies: list[Obj]) -> dict[Point, bool]:
    """What the engine says."""
    read = objects.cluster([*world.objects, *policies], live=True)
    cells = matrix.matrix_for(read, [ContainerPort(port, Protocol(p)) for port in PORTS for p in PROTOCOLS])
    return {(c.source, c.destination, c.port, str(c.protocol)): c.allowed for c in cells}


def specified(world: World, policies: list[Obj]) -> dict[Point, bool]:
    """What the second reading says."""
    return {
        (f"{a['namespace']}/{a['name']}", f"{b['namespace']}/{b['name']}", port, protocol): spec.allowed(
            policies, NAMESPACES, a, b, protocol, port
        )
        for a in world.pods
        for b in world.pods
        if a is not b
        for port in PORTS
        for protocol in PROTOCOLS
    }


def probed(world: World) -> dict[Point, bool]:
    rows = world.lab.json("probe", "--matrix", "--ports", _PROBED)["results"]
    return {(r["from"], r["to"], r["port"], r["protocol"]): r["allowed"] for r in rows}


@pytest.mark.parametrize("number", range(NUMBER))
def test_three_oracles_agree(world: World, number: int, tmp_path: Path) -> None:
    policies = world.cases.case()
    manifest = tmp_path / "policies.yaml"
    manifest.write_text(yaml.safe_dump_all(policies))
    wanted = specified(world, policies)
    assert len(wanted) == 9 * 8 * len(PORTS) * len(PROTOCOLS)
    assert computed(world, policies) == wanted
    world.lab("apply", "-f", manifest)
    try:
        assert probed(world) == wanted
    finally:
        world.lab("delete", "-f", manifest)
