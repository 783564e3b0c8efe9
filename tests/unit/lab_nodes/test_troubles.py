"""Which faults can be injected, and when they end. The gate and the agents are fakes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodenet.errors import BadInputError
from nodenet.lab import api_trouble
from nodenet.lab.api_trouble import ApiTrouble, Mode
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.clocks import Clock
from nodenet.lab.gate import Gate
from nodenet.lab.troubles import Troubles
from nodenet.lab.virtual_node import VirtualNode


class FakeAgent:
    def __init__(self, folder: Path) -> None:
        self.paused = False
        self.clock = Clock(folder, folder)
        self.resumed = asyncio.Event()

    async def act(self, verb: str) -> None:
        self.paused = verb == "pause"
        if verb == "resume":
            self.resumed.set()


@pytest.fixture
def agents(tmp_path: Path) -> dict[str, FakeAgent]:
    return {"node1": FakeAgent(tmp_path), "node2": FakeAgent(tmp_path)}


@pytest.fixture
def troubles(agents: dict[str, FakeAgent]) -> Troubles:
    nodes = {name: SimpleNamespace(agent=agent) for name, agent in agents.items()}
    return Troubles(ApiServer(), Gate({"node1": [], "node2": []}), cast("dict[str, VirtualNode]", nodes))


async def test_it_is_listed_until_it_ends(troubles: Troubles) -> None:
    await troubles.api({"mode": "away", "nodes": ["node2"], "for": 100})
    await troubles.agent({"verb": "pause", "nodes": ["node1"]})
    api, agent = troubles.describe()
    assert (api["node"], api["kind"], api["what"]) == ("node2", "api", "away")
    assert 0 < api["secondsLeft"] <= 100
    assert agent == {"node": "node1", "kind": "agent", "what": "paused", "secondsLeft": None}
    await troubles.clear({})
    assert troubles.describe() == []


async def test_a_pause_ends_by_itself(troubles: Troubles, agents: dict[str, FakeAgent]) -> None:
    await troubles.agent({"verb": "pause", "nodes": ["node1"], "for": 0.01})
    async with asyncio.timeout(5):
        await agents["node1"].resumed.wait()
    assert not agents["node2"].resumed.is_set()


async def test_api_trouble_ends_by_itself_and_a_later_one_has_its_own_time(troubles: Troubles) -> None:
    await troubles.api({"mode": "hang", "for": 0.01})
    await troubles.api({"mode": "slow", "latency": 1, "nodes": ["node1"]})
    async with asyncio.timeout(5):
        while len(left := troubles.describe()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [(each["node"], each["what"]) for each in left] == [("node1", "slow: 1 s later")]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"mode": "gone"}, "mode: expected one of away, slow, hang, blackhole, error, got 'gone'"),
        ({}, "mode: expected"),
        ({"mode": "slow"}, "slow: expected a latency, a rate, or both"),
        ({"mode": "slow", "latency": -1}, "latency: expected a number from 0, got -1"),
        ({"mode": "slow", "rate": "1k"}, "rate: expected a number"),
        ({"mode": "error", "code": 200}, "code: expected an HTTP status of an error, got 200"),
        ({"mode": "away", "nodes": ["node9"]}, "nodes: expected some of node1, node2, got ['node9']"),
        ({"mode": "away", "nodes": "node1"}, "nodes: expected some of"),
        ({"mode": "away", "for": 0}, "for: expected seconds"),
        ({"mode": "away", "for": True}, "for: expected seconds"),
    ],
)
async def test_what_cannot_be_staged_is_named_and_nothing_is(
    troubles: Troubles, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        await troubles.api(request_)
    assert message in str(caught.value)
    assert troubles.describe() == []


async def test_only_a_pause_has_an_end(troubles: Troubles) -> None:
    with pytest.raises(BadInputError, match="only a pause"):
        await troubles.agent({"verb": "kill", "nodes": ["node1"], "for": 5})


def test_a_trouble_survives_the_control_socket() -> None:
    for trouble in (ApiTrouble(Mode.SLOW, latency=0.5, rate=10), ApiTrouble(Mode.ERROR, code=410)):
        assert api_trouble.from_json(api_trouble.to_json(trouble)) == trouble
