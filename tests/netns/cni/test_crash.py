"""Whatever dies, and however many come at once: nothing is left, and no address is given twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import detach, protocol
from nodenet.cni.agent import AgentHooks
from nodenet.cni.attach import STEPS
from nodenet.cni.detach import recover
from nodenet.cni.ipam import Owner, Store
from nodenet.cni.plugin import Plugin
from nodenet.cni.records import Records
from nodenet.cni.request import parse
from nodenet.cni.server import CniServer
from nodenet.link import netns
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel
KEYS: dict[str, Any] = {"ipMasq": True, "macspoofchk": True}


def killed(world: Any, verb: str, container: str, pod: str, step: str, conf: bytes) -> None:
    """A verb in a process of its own that is ended by SIGKILL before a step."""
    child = os.fork()
    if child == 0:
        netns.enter(world.node)
        Plugin(step=lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None).run(
            parse(world.env(verb, container, pod), conf)
        )
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def by_del(world: Any, pod: str) -> None:
    assert world.call("DEL", "c1", pod, world.conf(**KEYS)).status == 0


def by_gc(world: Any, pod: str) -> None:
    reply = world.call("GC", "", "", world.conf(**{"cni.dev/valid-attachments": []}, **KEYS))
    assert reply.status == 0, reply.stdout


def by_the_next_agent(world: Any, pod: str) -> None:
    assert netns.call(world.node, recover, world.run_dir) == []


CLEANERS: list[Callable[[Any, str], None]] = [by_del, by_gc, by_the_next_agent]


@pytest.mark.parametrize("clean", CLEANERS)
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_add(world: Any, step: str, clean: Callable[[Any, str], None]) -> None:
    pod = world.pod()
    killed(world, "ADD", "c1", pod, step, world.conf(**KEYS))
    clean(world, pod)
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []
    assert world.call("ADD", "c1", pod, world.conf(**KEYS)).status == 0


@pytest.mark.parametrize("clean", CLEANERS)
@pytest.mark.parametrize("step", detach.STEPS)
def test_a_killed_del(world: Any, step: str, clean: Callable[[Any, str], None]) -> None:
    pod = world.pod()
    assert world.call("ADD", "c1", pod, world.conf(**KEYS)).status == 0
    killed(world, "DEL", "c1", pod, step, world.conf(**KEYS))
    clean(world, pod)
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


@pytest.mark.parametrize("step", detach.STEPS)
def test_a_killed_gc(world: Any, step: str) -> None:
    pods = [world.pod(), world.pod()]
    for number, pod in enumerate(pods):
        assert world.call("ADD", f"c{number}", pod, world.conf(**KEYS)).status == 0
    conf = world.conf(**{"cni.dev/valid-attachments": [{"containerID": "c0", "ifname": "eth0"}]}, **KEYS)
    killed(world, "GC", "", "", step, conf)
    assert world.call("GC", "", "", conf).status == 0
    assert world.interfaces(pods[1]) == ["lo"]
    assert world.call("DEL", "c0", pods[0], world.conf(**KEYS)).status == 0
    assert world.left() == []


def test_an_agents_start_removes_what_is_dead_and_keeps_what_lives(world: Any, pinging: Any) -> None:
    pods = [world.pod() for _ in range(3)]
    for number, pod in enumerate(pods):
        assert world.call("ADD", f"c{number}", pod, world.conf(**KEYS)).status == 0
    # As after a reboot with a folder that stayed: the namespace is gone, and with it both ends of the veth.
    netns.delete(pods[1])
    forgotten: list[Endpoint] = []
    deadline = 50
    while len(world.interfaces(world.node)) > 4 and (deadline := deadline - 1):
        netns.call(world.node, subprocess.run, ["sleep", "0.05"], check=True)
    assert netns.call(world.node, recover, world.run_dir, forgotten.append) == []
    assert [endpoint.container_id for endpoint in forgotten] == ["c1"]
    assert {record.owner.container_id for record in Records(world.run_dir).all()[0]} == {"c0", "c2"}
    assert pinging(pods[0], "10.77.0.4")
    # Somebody at work on it keeps it.
    with Records(world.run_dir).busy(Owner("c0", "eth0"), network="net", data_dir=world.leases, netns=pods[0]):
        assert netns.call(world.node, recover, world.run_dir) == []
    assert pinging(pods[0], "10.77.0.1")


def test_two_hundred_at_once(world: Any) -> None:
    """Through an agent's socket, as the executable speaks to it: 200 different addresses, then nothing."""

    async def call(path: Path, verb: str, container: str, pod: str) -> tuple[int, Any]:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(protocol.pack_request(world.env(verb, container, pod), world.conf(**KEYS)))
        reply = protocol.unpack_reply(await reader.read())
        writer.close()
        return reply.status, json.loads(reply.stdout or b"null")

    async def nothing(endpoint: Endpoint) -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        server = CniServer(world.run_dir, AgentHooks(nothing, nothing))
        await server.start()
        try:
            pods = [world.pod() for _ in range(200)]
            added = await asyncio.gather(*(call(server.path, "ADD", f"c{n}", pod) for n, pod in enumerate(pods)))
            assert [status for status, _ in added] == [0] * 200, [body for status, body in added if status]
            for family in (0, 1):
                assert len({body["ips"][family]["address"] for _, body in added}) == 200
            removed = await asyncio.gather(*(call(server.path, "DEL", f"c{n}", pod) for n, pod in enumerate(pods)))
            assert [status for status, _ in removed] == [0] * 200
        finally:
            await server.close()

    netns.call(world.node, asyncio.run, main())
    assert world.left() == []


def test_executables_at_once_without_an_agent(world: Any) -> None:
    pods = [world.pod() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        added = list(pool.map(lambda n: world.execute("ADD", f"c{n}", pods[n], world.conf(**KEYS)), range(16)))
        assert [done.returncode for done in added] == [0] * 16, [done.stdout for done in added if done.returncode]
        assert len({json.loads(done.stdout)["ips"][0]["address"] for done in added}) == 16
        removed = list(pool.map(lambda n: world.execute("DEL", f"c{n}", pods[n], world.conf(**KEYS)), range(16)))
    assert [done.returncode for done in removed] == [0] * 16
    assert world.left() == []


def fill(path: Path) -> None:
    """Write until the file system is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):
            while os.write(fd, bytes(4096)):
                pass
    finally:
        os.close(fd)


class TestDisk:
    @pytest.fixture
    def tiny(self, world: Any) -> Iterator[Path]:
        """The lease folder on a file system of its own, small enough to be full."""
        world.leases.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=20", "tmpfs", world.leases], check=True)
        try:
            yield world.leases
        finally:
            subprocess.run(["umount", world.leases], check=True)

    def test_a_full_disk(self, world: Any, tiny: Path) -> None:
        fill(tiny / "filler")
        self._refused(world, "No space left on device")
        (tiny / "filler").unlink()
        assert world.call("ADD", "c1", str(world.pods[0])).status == 0

    def test_no_inodes(self, world: Any, tiny: Path) -> None:
        for number in range(30):
            with contextlib.suppress(OSError):
                (tiny / str(number)).touch()
        self._refused(world, "No space left on device")

    def test_read_only(self, world: Any, tiny: Path) -> None:
        pod = world.pod()
        assert world.call("ADD", "c0", pod).status == 0
        left = len(world.left())
        subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
        self._refused(world, "Read-only file system", left)
        reply = world.call("STATUS", "")
        assert json.loads(reply.stdout)["code"] == 50
        # DEL cuts the wires and says what it could not do; the runtime tries again.
        reply = world.call("DEL", "c0", pod)
        assert json.loads(reply.stdout)["code"] == 5
        assert world.interfaces(pod) == ["lo"]
        subprocess.run(["mount", "-o", "remount,rw", tiny], check=True)
        assert world.call("DEL", "c0", pod).status == 0
        assert world.left() == []

    @staticmethod
    def _refused(world: Any, words: str, left: int = 0) -> None:
        pod = world.pod()
        reply = world.call("ADD", "c1", pod)
        body = json.loads(reply.stdout)
        assert (reply.status, body["code"]) == (1, 5)
        assert words in body["msg"]
        assert str(world.leases) in body["msg"]
        assert world.interfaces(pod) == ["lo"]
        assert len(world.left()) == left


def test_a_corrupted_lease_stays_taken_and_nobody_stumbles(world: Any) -> None:
    folder = world.leases / "net"
    folder.mkdir(parents=True)
    (folder / "10.77.0.2").write_bytes(bytes(range(256)))
    (folder / "10.77.0.3").mkdir()
    (folder / "last_reserved_ip.0").write_bytes(b"\xff\xfe")
    pod = world.pod()
    reply = world.call("ADD", "c1", pod)
    assert json.loads(reply.stdout)["ips"][0]["address"] == "10.77.0.4/24"
    assert world.call("DEL", "c1", pod).status == 0
    assert world.call("DEL", "never", pod).status == 0


class TestMovingOver:
    """Debian's host-local and ours on one lease folder, in turn."""

    REFERENCE = Path("/usr/lib/cni/host-local")

    @pytest.fixture(autouse=True)
    def _needs_it(self) -> None:
        if not self.REFERENCE.exists():
            pytest.skip("no reference plugins: apt-get install containernetworking-plugins")

    def reference(self, world: Any, verb: str, container: str) -> list[str]:
        env = world.env(verb, container, "/run/netns/none") | {"CNI_ARGS": ""}
        conf = json.dumps(json.loads(world.conf()) | {"cniVersion": "1.0.0"}).encode()
        done = subprocess.run([self.REFERENCE], env=env, input=conf, capture_output=True, check=True)
        return [ip["address"] for ip in json.loads(done.stdout)["ips"]] if done.stdout else []

    def ours(self, world: Any, verb: str, container: str) -> list[str]:
        reply = world.call(verb, container, str(world.pods[0]))
        assert reply.status == 0, reply.stdout
        return [ip["address"] for ip in json.loads(reply.stdout)["ips"]] if reply.stdout else []

    def test_in_both_directions(self, world: Any) -> None:
        world.pod()
        assert self.reference(world, "ADD", "r1") == ["10.77.0.2/24", "fd77::2/64"]
        assert self.ours(world, "ADD", "n1") == ["10.77.0.3/24", "fd77::3/64"]
        assert self.reference(world, "ADD", "r2") == ["10.77.0.4/24", "fd77::4/64"]
        # Each frees the other's.
        self.reference(world, "DEL", "n1")
        assert not (world.leases / "net/10.77.0.3").exists()
        self.ours(world, "DEL", "n1")
        self.ours(world, "DEL", "r1")
        assert sorted(path.name for path in (world.leases / "net").glob("[0-9f]*")) == ["10.77.0.4", "fd77::4"]
        self.ours(world, "DEL", "r2")
        assert world.left() == []
        assert self.reference(world, "ADD", "r3") == ["10.77.0.5/24", "fd77::5/64"]
        assert Store(world.leases, "net", world.run_dir).leases().keys() == {
            ip_address("10.77.0.5"),
            ip_address("fd77::5"),
        }
