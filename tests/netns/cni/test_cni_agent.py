"""ADD and DEL through an agent's socket, by the real executable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest

from nodenet.cni.agent import AgentHooks
from nodenet.cni.errors import CniError, Code
from nodenet.cni.protocol import Reply
from nodenet.cni.server import CniServer
from nodenet.errors import CannotRunError
from nodenet.link import netns
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel

Call = Callable[..., Awaitable[Reply]]


class Agent:
    """Two hooks that note what they were called with, and do what a test asks."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.calls: list[str] = []
        self.fail: Exception | None = None
        self.wait: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def on_add(self, endpoint: Endpoint) -> None:
        self.calls.append(f"add {endpoint.pod.name} {endpoint.ips[0]}")
        self.entered.set()
        if self.wait:
            await self.wait.wait()
        if self.fail:
            raise self.fail

    async def on_del(self, endpoint: Endpoint) -> None:
        leased = (self.world.leases / "net" / str(endpoint.ips[0])).exists()
        self.calls.append(f"del {endpoint.pod.name} {'leased' if leased else 'free'}")

    async def call(self, verb: str, container: str, pod: str = "", conf: bytes | None = None) -> Reply:
        done = await asyncio.to_thread(self.world.execute, verb, container, pod, conf)
        assert done.stderr == b""
        return Reply(done.returncode, done.stdout)


def scenario(world: Any, body: Callable[[Agent], Awaitable[None]], workers: int = 16, **hooks: Any) -> None:
    """Run a test's coroutine inside the node's namespace, with a server."""

    async def main() -> None:
        agent = Agent(world)
        server = CniServer(world.run_dir, AgentHooks(agent.on_add, agent.on_del, **hooks), workers=workers)
        await server.start()
        try:
            await body(agent)
        finally:
            await server.close()
        assert not server.path.exists()

    netns.call(world.node, asyncio.run, main())


def test_add_and_del_with_hooks(world: Any, pinging: Any) -> None:
    async def body(agent: Agent) -> None:
        pod = world.pod()
        added = await agent.call("ADD", "c1", pod)
        assert added.status == 0, added.stdout
        assert json.loads(added.stdout)["ips"][0]["address"] == "10.77.0.2/24"
        assert agent.calls == ["add c1 10.77.0.2"]
        assert await asyncio.to_thread(pinging, pod, "10.77.0.1")
        assert await agent.call("DEL", "c1", pod) == Reply(0, b"")
        assert agent.calls[1:] == ["del c1 leased"]
        assert await agent.call("DEL", "c1", pod) == Reply(0, b"")
        assert len(agent.calls) == 2
        assert world.left() == []

    scenario(world, body)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CniError(Code.TRY_AGAIN, "lists are not in yet"), 11, "lists are not in yet"),
        (ValueError("no map"), 105, "the agent failed with endpoint 1 of shop/c1: no map"),
        (TimeoutError(), 11, "the agent was not ready with endpoint 1 of shop/c1"),
    ],
)
def test_a_hook_that_raises_undoes_the_add(world: Any, error: Exception, code: int, message: str) -> None:
    async def body(agent: Agent) -> None:
        agent.fail = error
        pod = world.pod()
        reply = await agent.call("ADD", "c1", pod)
        assert reply.status == 1
        assert json.loads(reply.stdout)["code"] == code
        assert message in json.loads(reply.stdout)["msg"]
        assert agent.calls == ["add c1 10.77.0.2", "del c1 leased"]
        assert world.left() == []
        assert world.interfaces(pod) == ["lo"]
        agent.fail = None
        assert (await agent.call("ADD", "c1", pod)).status == 0

    scenario(world, body)


def test_a_hook_that_hangs_is_cut_off(world: Any) -> None:
    async def body(agent: Agent) -> None:
        agent.wait = asyncio.Event()
        reply = await agent.call("ADD", "c1", world.pod())
        assert json.loads(reply.stdout)["code"] == 11
        assert world.left() == []

    scenario(world, body, seconds=0.05)


def test_an_agent_that_stops_undoes_what_is_under_way(world: Any) -> None:
    async def main() -> None:
        agent = Agent(world)
        agent.wait = asyncio.Event()
        server = CniServer(world.run_dir, AgentHooks(agent.on_add, agent.on_del))
        await server.start()
        call = asyncio.create_task(agent.call("ADD", "c1", world.pod()))
        await agent.entered.wait()
        await server.close(grace=0.05)
        reply = await call
        assert json.loads(reply.stdout)["code"] == 11
        assert world.left() == []

    netns.call(world.node, asyncio.run, main())


@pytest.mark.parametrize("answer", [b"", b"NNR1", b"NNR1\0\0\0\0\0\0\0\x05{}", b"something else entirely"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_half_an_answer_is_try_again(world: Any, verb: str, answer: bytes) -> None:
    async def main() -> None:
        async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            writer.write(answer)
            await writer.drain()
            writer.close()

        world.run_dir.mkdir()
        async with await asyncio.start_unix_server(dying, world.run_dir / "cni.sock"):
            done = await asyncio.to_thread(world.execute, verb, "c1", world.pod())
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 11)
        assert world.left() == []

    netns.call(world.node, asyncio.run, main())


def test_a_stale_socket_means_alone_and_is_taken_over(world: Any) -> None:
    async def body(agent: Agent) -> None:
        assert (await agent.call("ADD", "c1", world.pod())).status == 0
        assert agent.calls == ["add c1 10.77.0.2"]
        with pytest.raises(CannotRunError, match="another agent of this node listens there"):
            await CniServer(world.run_dir, AgentHooks(agent.on_add, agent.on_del)).start()

    world.run_dir.mkdir()
    with netns.open_socket(None, 1, 1) as left_behind:
        left_behind.bind(str(world.run_dir / "cni.sock"))
    assert world.execute("ADD", "c0", world.pod()).returncode == 0
    assert world.execute("DEL", "c0").returncode == 0
    # c0 was served alone, and took the first address: the agent's first pod gets the next.
    (world.leases / "net/last_reserved_ip.0").unlink()
    scenario(world, body)


def test_many_at_once_get_different_addresses(world: Any) -> None:
    async def body(agent: Agent) -> None:
        pods = [world.pod() for _ in range(12)]
        added = await asyncio.gather(*(agent.call("ADD", f"c{n}", pod) for n, pod in enumerate(pods)))
        assert [reply.status for reply in added] == [0] * len(pods)
        assert len({json.loads(reply.stdout)["ips"][0]["address"] for reply in added}) == len(pods)
        deleted = await asyncio.gather(*(agent.call("DEL", f"c{n}", pod) for n, pod in enumerate(pods)))
        assert [reply.status for reply in deleted] == [0] * len(pods)
        assert world.left() == []

    scenario(world, body)


def test_a_del_that_the_agent_cannot_do_keeps_the_lease_for_the_next_try(world: Any) -> None:
    async def main() -> None:
        agent = Agent(world)
        refuse = True

        async def on_del(endpoint: Endpoint) -> None:
            assert endpoint.host_ifname not in await asyncio.to_thread(world.interfaces, world.node)
            if refuse:
                raise ValueError("not now")

        server = CniServer(world.run_dir, AgentHooks(agent.on_add, on_del))
        await server.start()
        pod = world.pod()
        assert (await agent.call("ADD", "c1", pod)).status == 0
        reply = await agent.call("DEL", "c1", pod)
        assert (reply.status, json.loads(reply.stdout)["code"]) == (1, 105)
        assert (world.leases / "net/10.77.0.2").exists()
        refuse = False
        assert (await agent.call("DEL", "c1", pod)).status == 0
        assert world.left() == []
        await server.close()

    netns.call(world.node, asyncio.run, main())


@pytest.mark.parametrize(
    "request_bytes", [b"", b"GET / HTTP/1.0\r\n\r\n", b"NNC1\xff\xff\xff\xff", b"NNC1\0\0\0\2A\0\0\0\0\0"]
)
def test_what_is_no_request_gets_no_work(world: Any, request_bytes: bytes) -> None:
    async def body(agent: Agent) -> None:
        reader, writer = await asyncio.open_unix_connection(world.run_dir / "cni.sock")
        writer.write(request_bytes)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert (await agent.call("ADD", "c1", world.pod())).status == 0

    scenario(world, body)


def test_gc_tells_the_agent_of_each_endpoint(world: Any) -> None:
    async def body(agent: Agent) -> None:
        for name in ("c1", "c2"):
            assert (await agent.call("ADD", name, world.pod())).status == 0
        conf = world.conf(**{"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]})
        assert await agent.call("GC", "", "", conf) == Reply(0, b"")
        assert agent.calls[2:] == ["del c1 leased"]
        assert await agent.call("DEL", "c2") == Reply(0, b"")
        assert world.left() == []

    scenario(world, body)


def test_status_asks_the_agent(world: Any) -> None:
    trouble = [""]

    async def healthy() -> str:
        return trouble[0]

    async def body(agent: Agent) -> None:
        assert await agent.call("STATUS", "") == Reply(0, b"")
        trouble[0] = "maps: no space"
        reply = await agent.call("STATUS", "")
        assert json.loads(reply.stdout)["code"] == 51
        assert "the agent of this node has a problem: maps: no space" in json.loads(reply.stdout)["msg"]

    scenario(world, body, healthy=healthy)


def test_pod_networks_come_from_the_agent_and_stay_for_when_it_is_away(world: Any) -> None:
    ipam = {"type": "nodenet", "dataDir": str(world.leases)}
    networks: list[Any] = []

    async def body(agent: Agent) -> None:
        reply = await agent.call("ADD", "c1", world.pod(), world.conf(ipam=ipam))
        assert json.loads(reply.stdout)["code"] == 11
        assert "its Node object has no spec.podCIDRs yet" in json.loads(reply.stdout)["msg"]
        networks.extend((ip_network("10.44.3.0/24"), ip_network("fd44:3::/64")))
        reply = await agent.call("ADD", "c1", world.pod(), world.conf(ipam=ipam))
        assert [ip["address"] for ip in json.loads(reply.stdout)["ips"]] == ["10.44.3.2/24", "fd44:3::2/64"]

    scenario(world, body, networks=lambda: networks)
    reply = world.call("ADD", "c2", world.pod(), world.conf(ipam=ipam))
    assert [ip["address"] for ip in json.loads(reply.stdout)["ips"]] == ["10.44.3.3/24", "fd44:3::3/64"]


def test_a_thread_outlives_what_goes_wrong_after_its_answer(world: Any) -> None:
    counted: list[str] = []

    def done(verb: str, seconds: float, failed: bool) -> None:
        counted.append(verb)
        raise RuntimeError("the counter is broken")

    async def body(agent: Agent) -> None:
        pod = world.pod()
        async with asyncio.timeout(20):
            for verb in ("ADD", "DEL"):
                assert (await agent.call(verb, "c1", pod)).status == 0

    scenario(world, body, workers=1, done=done)
    assert counted == ["ADD", "DEL"]
