"""What `nodenet cni install` puts on a node, on a node that has nothing else: no Python, no libc, no shell."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni.agent import AgentHooks
from nodenet.cni.conflist import Options
from nodenet.cni.install import install
from nodenet.cni.server import CniServer
from nodenet.link import netns, routes
from nodenet.link.handle import Link
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, bpf_cache: Path) -> Path:
    """A root folder with the plugin and mount points alone."""
    folder = tmp_path_factory.mktemp("root")
    install(folder / "opt", folder / "etc", Options(("10.5.0.0/24",)), bpf_cache)
    for name in ("proc", "run", "state"):
        (folder / name).mkdir()
    return folder


def bare(world: Any, root: Path, verb: str, container: str, pod: str = "", **keys: Any) -> tuple[int, Any]:
    """The plugin in that root. Namespaces (/run) and /proc are what every node has; `state` is the test's folder."""
    conf = json.loads(world.conf(**keys))
    conf["agentSocket"] = "/state/run/cni.sock"
    conf["ipam"]["dataDir"] = "/state/leases"
    mounts = (
        f"mount -t proc proc {root}/proc && mount --rbind /run {root}/run && mount --bind {world.folder} {root}/state"
    )
    script = f"{mounts} && exec chroot {root} /opt/nodenet"
    done = netns.run(
        world.node,
        ["unshare", "--mount", "sh", "-c", script],
        env=world.env(verb, container, pod) | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        input=json.dumps(conf).encode(),
        capture_output=True,
        timeout=30,
    )
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_alone_where_nothing_is_installed(world: Any, root: Path, pinging: Any) -> None:
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"nodenet", "alone", "10-nodenet.conflist"}
    pod = world.pod()
    status, result = bare(world, root, "ADD", "c1", pod)
    assert (status, [entry["address"] for entry in result["ips"]]) == (0, ["10.77.0.2/24", "fd77::2/64"])
    with Link(pod) as link:
        assert {str(route.gateway) for route in routes.list_routes(link) if route.gateway} == {"10.77.0.1", "fd77::1"}
    assert pinging(pod, "10.77.0.1")
    # In the specification's shape also when it fails.
    status, result = bare(world, root, "ADD", "c1", pod)
    assert (status, result["code"] >= 100, result["cniVersion"]) == (1, True, "1.1.0")
    assert bare(world, root, "DEL", "c1", pod) == (0, None)
    assert bare(world, root, "DEL", "c1", pod) == (0, None)
    assert world.left() == []


def test_errors_where_nothing_is_installed(world: Any, root: Path) -> None:
    assert bare(world, root, "ADD", "c1", "/run/netns/nntest-none")[1]["code"] == 3
    assert bare(world, root, "ADD", "c1", world.pod(), mtu="big")[1]["code"] == 7
    assert bare(world, root, "ADD", "c1", world.pods[-1], requireAgent=True)[1]["code"] == 11
    assert bare(world, root, "VERSION", "")[1]["supportedVersions"][-1] == "1.1.0"
    assert world.left() == []


def test_by_way_of_the_agent(world: Any, root: Path) -> None:
    added: list[Endpoint] = []

    async def on_add(endpoint: Endpoint) -> None:
        added.append(endpoint)

    async def on_del(endpoint: Endpoint) -> None:
        added.remove(endpoint)

    async def serve() -> None:
        server = CniServer(world.run_dir, AgentHooks(on_add, on_del))
        await server.start()
        try:
            pod = world.pod()
            done = await asyncio.to_thread(world.execute, "ADD", "c1", pod, program=root / "opt/nodenet")
            assert done.returncode == 0, done.stdout
            assert [str(address) for address in added[0].ips] == ["10.77.0.2", "fd77::2"]
            assert world.interfaces(pod) == ["lo", "eth0"]
            done = await asyncio.to_thread(world.execute, "DEL", "c1", pod, program=root / "opt/nodenet")
            assert (done.returncode, done.stdout, added) == (0, b"", [])
        finally:
            await server.close()

    # The server works in the namespace of its event loop's thread.
    netns.call(world.node, asyncio.run, serve())
    assert world.left() == []
