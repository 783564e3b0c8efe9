"""Staged trouble is real: the agents meet it, traffic goes on, and what changed meanwhile arrives afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.lab.api_trouble import ApiTrouble, Event, Mode
from nodenet.lab.client import LabClient
from nodenet.lab.staging import Staging
from tests.e2e.labs import Lab, nodenet, running, traces, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

WORLD = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Pod, metadata: {name: client, labels: {app: client}},
     spec: {nodeName: node1, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
"""
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: server}}}
"""
OUTAGES = [ApiTrouble(Mode.AWAY), ApiTrouble(Mode.BLACKHOLE), ApiTrouble(Mode.HANG)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("trouble") / "world.yaml"
    manifest.write_text(WORLD)
    options = ("--agent-set", "ct_entries=8192", "--agent-set", "node2:ct_entries=4096")
    with running("trouble", "--nodes", "2", "-f", manifest, *options) as found:
        yield found
        # The end of a lab is the end of its trouble: with processes that are stopped, connections that are lost, and
        # times that are not over.
        staging = Staging(LabClient(found.name))
        staging.set_api(ApiTrouble(Mode.BLACKHOLE), seconds=3600)
        staging.agent("pause", ["node1"], 3600)
    assert traces(found.name) == []


@pytest.fixture
def stage(lab: Lab) -> Iterator[Staging]:
    staging = Staging(LabClient(lab.name))
    yield staging
    staging.clear()
    lab("delete", "networkpolicy", "deny", check=False)
    until(lambda: allowed(lab), "all is as it was")


def staged(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(nodenet("lab", "trouble", "list", "-o", "json", "--name", lab.name).stdout)
    return found


def allowed(lab: Lab) -> bool:
    return lab("probe", "--from", "client", "--to", "server", "--timeout", "0.3", check=False).returncode == 0


def deny(lab: Lab, folder: Path) -> None:
    manifest = folder / "deny.yaml"
    manifest.write_text(DENY)
    lab("apply", "-f", manifest)


def api_of(lab: Lab, node: str) -> dict[str, Any]:
    status = nodenet("status", "--lab", lab.name, "--node", node, "-o", "json", check=False)
    found: dict[str, Any] = json.loads(status.stdout)["api"]
    return found


def counted(lab: Lab, node: str, what: str) -> int:
    return int(sum(kind[what] for kind in api_of(lab, node).values()))


@pytest.mark.parametrize("trouble", OUTAGES, ids=lambda trouble: trouble.mode)
def test_without_an_api_traffic_goes_on_and_the_change_arrives_afterwards(
    lab: Lab, stage: Staging, tmp_path: Path, trouble: ApiTrouble
) -> None:
    with stage.api(trouble):
        assert staged(lab)[0]["what"] == trouble.mode
        events = counted(lab, "node1", "events")
        deny(lab, tmp_path)
        # The lab's own API has it, the agent does not.
        assert lab("get", "networkpolicy", "deny").returncode == 0
        assert allowed(lab)
        assert counted(lab, "node1", "events") == events
    until(lambda: not allowed(lab), "the policy is in force", 30)


def test_one_node_without_an_api_and_the_other_with(lab: Lab, stage: Staging, tmp_path: Path) -> None:
    with stage.api(Mode.HANG, ["node1"]):
        before = counted(lab, "node2", "events")
        deny(lab, tmp_path)
        until(lambda: counted(lab, "node2", "events") > before, "node2 hears of it")
        assert allowed(lab)
    until(lambda: not allowed(lab), "node1 heard of it, too", 30)


def test_a_slow_api_delays_changes(lab: Lab, stage: Staging, tmp_path: Path) -> None:
    stage.set_api(ApiTrouble(Mode.SLOW, latency=3600))
    deny(lab, tmp_path)
    assert allowed(lab)
    stage.set_api(ApiTrouble(Mode.SLOW, latency=0.2, rate=50_000))
    until(lambda: not allowed(lab), "it comes, later")


def test_errors_are_seen_by_the_agent(lab: Lab, stage: Staging) -> None:
    with stage.api(ApiTrouble(Mode.ERROR, code=503)):
        stage.api_event(Event.RESET)
        until(lambda: all("503" in kind["error"] for kind in api_of(lab, "node1").values()), "the status says so")
        assert allowed(lab)
    until(lambda: not any(kind["error"] for kind in api_of(lab, "node1").values()), "all is well")


@pytest.mark.parametrize("event", list(Event))
def test_cut_watches_go_on_and_expired_ones_list_again(lab: Lab, stage: Staging, tmp_path: Path, event: Event) -> None:
    until(lambda: not any(kind["error"] for kind in api_of(lab, "node1").values()), "every watch is open")
    lists, errors = counted(lab, "node1", "lists"), counted(lab, "node1", "errors")
    kinds = len(api_of(lab, "node1"))
    assert stage.api_event(event, ["node1"]) >= kinds
    deny(lab, tmp_path)
    until(lambda: not allowed(lab), "the watches bring changes")
    if event is Event.EXPIRE:
        until(lambda: counted(lab, "node1", "lists") >= lists + kinds, "every kind is listed again")
        return
    assert counted(lab, "node1", "lists") == lists
    # A reset is an error to a client, the end of a watch is not.
    assert (counted(lab, "node1", "errors") > errors) == (event is Event.RESET)


def test_trouble_with_an_end_ends_by_itself(lab: Lab, stage: Staging) -> None:
    nodenet("lab", "trouble", "api", "away", "--for", "0.5", "--name", lab.name)
    until(lambda: not staged(lab), "it is over")
    until(lambda: not any(kind["error"] for kind in api_of(lab, "node1").values()), "the agent is back")


def test_a_paused_agent_forwards_and_answers_nothing(lab: Lab, stage: Staging, tmp_path: Path) -> None:
    with stage.paused("node1"):
        pid = lab.json("status", check=False)["agents"][0]["pid"]
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert (state, lab.json("status", check=False)["agents"][0]["state"]) == ("T", "paused")
        deny(lab, tmp_path)
        assert allowed(lab)
    until(lambda: not allowed(lab), "it goes on where it stopped")
    assert lab.json("status")["agents"][0]["pid"] == pid


def test_every_map_size_can_be_set_for_one_node(lab: Lab) -> None:
    for node, wanted in (("node1", 8192), ("node2", 4096)):
        found = json.loads(nodenet("map", "list", "--lab", lab.name, "--node", node, "-o", "json").stdout)
        assert next(entry for entry in found if entry["name"] == "nn_ct")["size"] == wanted
