"""Endpoint files and the Store: endpoints that the plugin made without the agent are taken over, and a veth that
disappears does not stop the agent."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet.agent import endpoints as module
from nodenet.agent.endpoints import Endpoints, key_of
from nodenet.cni.records import Record, Records
from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.link.handle import LinkError
from nodenet.model import Endpoint, ObjectRef
from nodenet.reconcile.grace import NoPrograms
from nodenet.testing import fake_tables


class Veths:
    """A fake host: which veths exist, for which attaching fails, and the order of what was attached."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.refusing: set[int] = set()
        self.log: list[str] = []

    async def attach(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int:
        self.log.append(f"attach {endpoint.pod.name}")
        if endpoint.host_ifindex not in self.alive:
            raise LinkError(f"cannot attach to {endpoint.host_ifname}", errno.ENODEV)
        if endpoint.host_ifindex in self.refusing:
            raise LinkError(f"cannot attach to {endpoint.host_ifname}", errno.ENOMEM)
        return 2

    async def isolate(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int:
        self.log.append(f"isolate {endpoint.pod.name}")
        if endpoint.host_ifindex not in self.alive or endpoint.host_ifindex in self.refusing:
            raise LinkError(f"cannot attach to {endpoint.host_ifname}", errno.ENODEV)
        return 0

    async def exists(self, endpoint: Endpoint) -> bool:
        return endpoint.host_ifindex in self.alive

    async def netns_id(self, endpoint: Endpoint) -> int | None:
        return endpoint.host_ifindex + 100


class Fed(Engine):
    """An engine without a loop. It records calls of in_force()."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(LocalNode("node1"), fake_tables(), NoPrograms())
        self.log = log

    async def in_force(self) -> None:
        self.log.append("in force")


class Node:
    def __init__(self, run_dir: Path) -> None:
        self.records = Records(run_dir)
        self.records.ids.mkdir(parents=True)
        self.veths = Veths()
        self.engine = Fed(self.veths.log)
        self.endpoints = Endpoints(run_dir, self.veths, self.engine, {})

    def wired(self, number: int) -> Record:
        """The files and veth that the plugin leaves when it works without the agent."""
        endpoint = Endpoint(
            endpoint_id=number,
            container_id=f"c{number}",
            ifname="eth0",
            netns=f"/run/netns/c{number}",
            host_ifname=f"veth{number}",
            host_ifindex=number,
            mac="0a:58:0a:01:00:02",
            ips=(ip_address(f"10.1.0.{number}"),),
            pod=ObjectRef("shop", f"web-{number}"),
            pod_uid="u",
        )
        record = Record(endpoint, "net", None)
        self.records.put(record)
        self.veths.alive.add(number)
        return record

    def known(self) -> list[str]:
        return sorted(endpoint.pod.name for endpoint in self.endpoints.known())

    def cookies(self) -> dict[str, int]:
        return {endpoint.pod.name: endpoint.netns_cookie for endpoint in self.endpoints.known()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(module, "recover", lambda run_dir: [])
    monkeypatch.setattr(module, "netns_cookie", lambda path: int(path.rpartition("c")[2]) + 1000)
    return Node(tmp_path)


async def test_cookies_are_known_before_the_first_compilation(node: Node) -> None:
    node.wired(1)
    await node.endpoints.read()
    assert node.cookies() == {"web-1": 1001}


async def test_the_namespaces_number_is_asked_of_the_kernel_for_whatever_is_taken_over(node: Node) -> None:
    """The records have none: they may be older than this agent."""
    node.wired(1)
    await node.endpoints.read()
    node.wired(2)
    assert await node.endpoints.sync_from_disk() == 2
    assert await node.endpoints.sync_from_disk() == 0  # and the number makes no known endpoint a new one
    assert {endpoint.endpoint_id: endpoint.netns_id for endpoint in node.endpoints.known()} == {1: 101, 2: 102}


async def test_what_the_plugin_did_while_the_agent_started_is_taken_over(node: Node) -> None:
    gone = node.wired(1)
    await node.endpoints.read()
    await node.endpoints.attach_all()
    node.wired(2)
    node.records.drop(gone.owner)
    node.veths.log.clear()
    assert await node.endpoints.sync_from_disk() == 2
    assert node.cookies() == {"web-2": 1002}
    assert node.veths.log == ["isolate web-2", "in force", "attach web-2"]


async def test_endpoints_made_without_the_agent_are_isolated_first(node: Node) -> None:
    node.wired(1)
    node.wired(2)
    await node.endpoints.read()
    node.veths.refusing.add(1)
    assert await node.endpoints.isolate() == 0
    assert node.veths.log == ["isolate web-1", "isolate web-2"]


async def test_an_attachment_that_a_verb_works_on_is_left_to_it(node: Node) -> None:
    await node.endpoints.read()
    record = node.wired(1)
    with node.records.busy(record.owner):
        assert await node.endpoints.sync_from_disk() == 0
    assert await node.endpoints.sync_from_disk() == 2
    assert node.known() == ["web-1"]


async def test_a_vanished_veth_ends_nothing(node: Node) -> None:
    node.wired(1)
    node.wired(2)
    await node.endpoints.read()
    node.veths.alive.remove(1)
    assert await node.endpoints.attach_all() == 2
    assert node.known() == ["web-2"]
    assert node.endpoints.unpoliced == {}


async def test_a_failed_attach_is_reported_and_retried(node: Node) -> None:
    record = node.wired(1)
    await node.endpoints.read()
    node.veths.refusing.add(1)
    assert await node.endpoints.attach_all() == 0
    assert list(node.endpoints.unpoliced) == [key_of(record.endpoint)]
    assert "shop/web-1 is not policed" in node.endpoints.unpoliced[key_of(record.endpoint)]
    node.veths.refusing.clear()
    assert await node.endpoints.sync_from_disk() == 2
    assert node.endpoints.unpoliced == {}


async def test_a_problem_is_logged_once_and_problems_of_many_pods_do_not_fill_the_memory(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodenet.agent.endpoints._MOST_LOGGED", 3)
    for number in range(1, 9):
        node.wired(number)
    await node.endpoints.read()
    node.veths.refusing.add(8)
    assert await node.endpoints.attach_all() == 14
    assert await node.endpoints.attach_all() == 14
    assert sum("shop/web-8 is not policed" in record.message for record in caplog.records) == 1
    node.veths.alive.clear()
    assert await node.endpoints.attach_all() == 0
    assert sum("its interface" in record.message for record in caplog.records) == 8
    assert len(node.endpoints._logged) == 3


async def test_a_folder_that_does_not_change_is_not_read_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.wired(1)
    await node.endpoints.read()
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0)
    await node.endpoints.sync_from_disk()
    monkeypatch.setattr(node.endpoints, "_readable", None)
    assert await node.endpoints.sync_from_disk() == 0
