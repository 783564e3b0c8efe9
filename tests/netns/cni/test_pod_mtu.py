"""The MTU of pods: the configuration's, or the agent's, which is that of the uplink and may change."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from nodenet.cni import podmtu
from nodenet.cni.agent import AgentHooks
from nodenet.cni.server import CniServer
from nodenet.link import netns
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel


def mtu(where: Any, ifname: str) -> int:
    done = netns.run(where, ["ip", "-o", "link", "show", ifname], capture_output=True, text=True, check=True)
    return int(done.stdout.partition(" mtu ")[2].split()[0])


def test_pods_have_the_agents_mtu_and_new_ones_a_changed_one(world: Any) -> None:
    current = 1400

    async def nothing(_endpoint: Endpoint) -> None: ...

    async def main() -> None:
        server = CniServer(world.run_dir, AgentHooks(nothing, nothing, mtu=lambda: current))
        await server.start()
        try:
            for number, wanted in enumerate((1400, 1300, 9000, 0)):
                nonlocal current
                current = wanted
                pod = world.pod()
                added = await asyncio.to_thread(world.execute, "ADD", f"c{number}", pod)
                assert added.returncode == 0, added.stdout
                # 0: the agent knows none, and the kernel has a default.
                assert mtu(pod, "eth0") == (wanted or 1500)
                assert mtu(world.node, "nn0") == (wanted or 9000)
            pod = world.pod()
            current = 1400
            added = await asyncio.to_thread(world.execute, "ADD", "named", pod, world.conf(mtu=1350))
            assert mtu(pod, "eth0") == 1350
        finally:
            await server.close()

    netns.call(world.node, lambda: asyncio.run(main()))


def test_the_plugin_alone_uses_what_the_agent_stored(world: Any) -> None:
    world.run_dir.mkdir(parents=True, exist_ok=True)
    pods = [world.pod() for _ in range(3)]
    assert world.call("ADD", "c0", pods[0]).status == 0
    podmtu.store(world.run_dir, 1400)
    assert world.call("ADD", "c1", pods[1]).status == 0
    (world.run_dir / "pod-mtu").write_text("damaged")
    assert world.call("ADD", "c2", pods[2]).status == 0
    assert [mtu(pod, "eth0") for pod in pods] == [1500, 1400, 1500]
    assert subprocess.run(["ls", world.run_dir], capture_output=True, text=True, check=True).stdout.count("mtu") == 1
