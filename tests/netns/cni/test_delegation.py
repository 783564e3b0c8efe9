"""Addresses from other IPAM plugins: Debian's `static`, and a scripted one that keeps a pool and a log."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import alone, child
from nodenet.cni.agent import AgentHooks
from nodenet.cni.attach import STEPS
from nodenet.cni.detach import recover
from nodenet.cni.plugin import Plugin
from nodenet.cni.protocol import Reply
from nodenet.cni.records import Records
from nodenet.cni.request import parse
from nodenet.cni.server import CniServer
from nodenet.link import netns, routes
from nodenet.link.handle import Link
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel

STATIC = Path("/usr/lib/cni/static")
# It does what each verb asks, and notes who called it: verb, container, and the network namespace that it is in.
POOL = """#!/bin/sh
cd {folder}
read -r conf
echo "$CNI_COMMAND $CNI_CONTAINERID $(readlink /proc/self/ns/net)" >>log
fail() {{ echo "{{\\"cniVersion\\": \\"1.1.0\\", \\"code\\": $1, \\"msg\\": \\"$2\\"}}"; exit 1; }}
[ -e "fail-$CNI_COMMAND" ] && fail 111 "pool: $CNI_COMMAND is out of order"
case $CNI_COMMAND in
ADD)
    [ -e "leases/$CNI_CONTAINERID" ] && fail 112 "pool: twice"
    touch "leases/$CNI_CONTAINERID"
    cat answer ;;
DEL) rm -f "leases/$CNI_CONTAINERID" ;;
CHECK) [ -e "leases/$CNI_CONTAINERID" ] || fail 113 "pool: no lease" ;;
GC) for lease in leases/*; do case $conf in *"${{lease#leases/}}"*) ;; *) rm -f "$lease" ;; esac; done ;;
esac
"""
ANSWER = {
    "cniVersion": "1.1.0",
    "ips": [{"address": "10.77.0.9/24"}, {"address": "fd77::9/64", "gateway": "fd77::fe"}],
    "routes": [{"dst": "10.9.0.0/16", "mtu": 1400}, {"dst": "fd99::/64", "gw": "fd77::7"}],
    "dns": {"nameservers": ["10.77.0.53"]},
}


class Delegating:
    """A node whose network has the scripted IPAM plugin."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world, self.folder = world, folder
        (folder / "leases").mkdir(parents=True)
        (folder / "pool").write_text(POOL.format(folder=folder))
        (folder / "pool").chmod(0o755)
        self.answer()

    def answer(self, **keys: Any) -> None:
        (self.folder / "answer").write_text(json.dumps(ANSWER | keys))

    def conf(self, **keys: Any) -> bytes:
        return bytes(self.world.conf(**{"ipam": {"type": "pool", "range": "10.77.0.0/24"}} | keys))

    def env(self, verb: str, container: str, pod: str) -> dict[str, str]:
        return dict(self.world.env(verb, container, pod)) | {"CNI_PATH": f"/nowhere:{self.folder}"}

    def call(self, verb: str, container: str = "", pod: str = "", conf: bytes | None = None) -> Reply:
        return netns.call(self.world.node, alone.run, self.env(verb, container, pod), conf or self.conf())

    @property
    def leases(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "leases").iterdir())

    @property
    def log(self) -> list[str]:
        """The calls so far. All of them were in the node's namespace."""
        path = self.folder / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        assert {line[-1] for line in lines} <= {f"net:[{netns.inode(self.world.node)[1]}]"}
        return [" ".join(line[:-1]) for line in lines]


@pytest.fixture
def node(world: Any, tmp_path: Path) -> Delegating:
    return Delegating(world, tmp_path / "pool")


def body(reply: Reply) -> Any:
    return json.loads(reply.stdout)


def test_add_check_and_del(node: Delegating, pinging: Any) -> None:
    pod = node.world.pod()
    reply = node.call("ADD", "c1", pod)
    assert reply.status == 0, reply.stdout
    result = body(reply)
    # The node is the gateway: where the plugin names none, the subnet's first address, as the reference has it.
    assert result["ips"] == [
        {"interface": 2, "address": "10.77.0.9/24", "gateway": "10.77.0.1"},
        {"interface": 2, "address": "fd77::9/64", "gateway": "fd77::fe"},
    ]
    assert result["routes"] == [
        {"dst": "10.9.0.0/16", "gw": "10.77.0.1", "mtu": 1400},
        {"dst": "fd99::/64", "gw": "fd77::7"},
        {"dst": "0.0.0.0/0", "gw": "10.77.0.1"},
        {"dst": "::/0", "gw": "fd77::fe"},
    ]
    assert result["dns"] == {"nameservers": ["10.77.0.53"]}
    with Link(pod) as link:
        found = {(str(route.network), str(route.gateway)) for route in routes.list_routes(link) if route.gateway}
    assert ("10.9.0.0/16", "10.77.0.1") in found
    assert pinging(pod, "10.77.0.1")
    assert pinging(pod, "fd77::fe")
    check = node.conf(prevResult=result)
    assert node.call("CHECK", "c1", pod, check) == Reply(0, b"")
    (node.folder / "leases/c1").unlink()
    assert body(node.call("CHECK", "c1", pod, check)) == {"cniVersion": "1.1.0", "code": 113, "msg": "pool: no lease"}
    (node.folder / "leases/c1").touch()
    for _ in range(2):
        assert node.call("DEL", "c1", pod, check) == Reply(0, b"")
    assert node.log == ["ADD c1", "CHECK c1", "CHECK c1", "DEL c1", "DEL c1"]
    assert (node.leases, node.world.left()) == ([], [])


def test_a_second_add_does_not_touch_the_first_ones_address(node: Delegating) -> None:
    pod = node.world.pod()
    assert node.call("ADD", "c1", pod).status == 0
    assert body(node.call("ADD", "c1", pod))["code"] == 103
    assert node.log == ["ADD c1"]
    assert node.leases == ["c1"]


def test_without_a_gateway_there_is_none(node: Delegating) -> None:
    reply = node.call("ADD", "c1", node.world.pod(), node.conf(isDefaultGateway=False, dns={"search": ["shop"]}))
    assert reply.status == 0, reply.stdout
    assert body(reply)["ips"][0] == {"interface": 2, "address": "10.77.0.9/24"}
    assert body(reply)["routes"][0] == {"dst": "10.9.0.0/16", "mtu": 1400}
    # The network's own DNS comes before the plugin's.
    assert body(reply)["dns"] == {"search": ["shop"]}


@pytest.mark.parametrize("step", STEPS[2:])
def test_a_failure_after_its_add_gives_the_address_back(node: Delegating, step: str) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise OSError(28, "No space left on device", "/somewhere")

    def inside() -> Reply:
        plugin = Plugin(step=fail)
        try:
            return plugin.run(parse(node.env("ADD", "c1", pod), node.conf()))
        finally:
            plugin.close()

    pod = str(node.world.pod())
    assert body(netns.call(node.world.node, inside))["code"] == 5
    assert node.log == ["ADD c1", "DEL c1"]
    assert (node.leases, node.world.left()) == ([], [])


def test_its_errors_are_passed_on(node: Delegating) -> None:
    for verb in ("ADD", "STATUS", "GC"):
        (node.folder / f"fail-{verb}").touch()
    pod, error = node.world.pod(), {"cniVersion": "1.1.0", "code": 111}
    assert body(node.call("ADD", "c1", pod)) == error | {"msg": "pool: ADD is out of order"}
    # It may have given an address before it failed.
    assert node.log == ["ADD c1", "DEL c1"]
    assert body(node.call("STATUS")) == error | {"msg": "pool: STATUS is out of order"}
    gc = node.conf(**{"cni.dev/valid-attachments": []})
    assert body(node.call("GC", conf=gc)) == error | {"msg": "pool: GC is out of order"}
    assert node.world.left() == []


def test_a_del_that_fails_can_be_tried_again(node: Delegating) -> None:
    pod = node.world.pod()
    assert node.call("ADD", "c1", pod).status == 0
    (node.folder / "fail-DEL").touch()
    assert body(node.call("DEL", "c1", pod))["code"] == 111
    (node.folder / "fail-DEL").unlink()
    assert node.leases == ["c1"]
    assert node.call("DEL", "c1", pod) == Reply(0, b"")
    assert (node.leases, node.world.left()) == ([], [])


def test_an_executable_that_is_not_there(node: Delegating) -> None:
    conf = node.conf(ipam={"type": "nntest-none"})
    found = body(node.call("ADD", "c1", node.world.pod(), conf))
    assert found["code"] == 2
    assert f"(/nowhere:{node.folder})" in found["msg"]
    assert body(node.call("STATUS", conf=conf))["code"] == 50
    assert node.world.left() == []


def test_no_address_is_an_error(node: Delegating) -> None:
    node.answer(ips=[])
    found = body(node.call("ADD", "c1", node.world.pod()))
    assert (found["code"], found["msg"]) == (107, "IPAM plugin pool: ADD: its result has no address")
    assert node.log == ["ADD c1", "DEL c1"]


def test_a_hung_one_is_killed_and_asked_to_give_back(node: Delegating, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = node.folder / "slow"
    slow.write_text(
        f'#!/bin/sh\necho "$CNI_COMMAND" >>{node.folder}/slow.log\n[ $CNI_COMMAND = DEL ] || exec sleep 60\n'
    )
    slow.chmod(0o755)
    monkeypatch.setattr("nodenet.cni.delegate.LIMIT_SECONDS", 0.3)
    assert body(node.call("ADD", "c1", node.world.pod(), node.conf(ipam={"type": "slow"})))["code"] == 11
    assert (node.folder / "slow.log").read_text().split() == ["ADD", "DEL"]
    assert node.world.left() == []


def test_gc_gives_back_by_the_record_and_asks_the_plugin(node: Delegating) -> None:
    for number in (1, 2):
        octet = 10 + number
        node.answer(ips=[{"address": f"10.77.0.{octet}/24"}], routes=[])
        assert node.call("ADD", f"c{number}", node.world.pod()).status == 0
    # Of a pod that nobody has a record of.
    (node.folder / "leases/c3").touch()
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    assert node.call("GC", conf=node.conf(**{"cni.dev/valid-attachments": valid})) == Reply(0, b"")
    assert node.leases == ["c2"]
    assert node.log[2:] == ["DEL c1", "GC"]
    assert [record.owner.container_id for record in Records(node.world.run_dir).all()[0]] == ["c2"]


def test_an_agents_start_gives_back_what_died(node: Delegating) -> None:
    pod = node.world.pod()
    assert node.call("ADD", "c1", pod).status == 0
    with Link(pod) as link:
        link.delete("eth0")
    netns.delete(pod)
    problems = netns.call(node.world.node, recover, node.world.run_dir)
    assert problems == []
    assert (node.leases, node.world.left()) == ([], [])


def test_by_way_of_the_agent(node: Delegating) -> None:
    """CNI_PATH and all comes with the request, and several at once do not wait for each other."""

    async def hook(endpoint: Endpoint) -> None:
        pass

    async def serve() -> None:
        server = CniServer(node.world.run_dir, AgentHooks(hook, hook))
        await server.start()
        try:
            pod = node.world.pod()
            for verb, program in (("ADD", node.world.program), ("DEL", node.world.program)):
                environment = node.env(verb, "c1", pod)
                done = await asyncio.to_thread(
                    subprocess.run, [program], env=environment, input=node.conf(), capture_output=True, timeout=30
                )
                assert (done.returncode, done.stderr) == (0, b""), done.stdout
        finally:
            await server.close()

    netns.call(node.world.node, asyncio.run, serve())
    assert node.log == ["ADD c1", "DEL c1"]
    assert (node.leases, node.world.left()) == ([], [])


def test_the_executable_alone(node: Delegating) -> None:
    pod, run = node.world.pod(), node.world.node
    for verb in ("STATUS", "ADD", "DEL"):
        environment = node.env(verb, "c1", pod)
        done = netns.run(run, [node.world.program], env=environment, input=node.conf(), capture_output=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, b""), done.stdout
    assert node.log == ["STATUS c1", "ADD c1", "DEL c1"]
    assert (node.leases, node.world.left()) == ([], [])


def test_debians_static(world: Any, pinging: Any) -> None:
    if not STATIC.exists():
        pytest.skip("Debian's static IPAM plugin is not installed (containernetworking-plugins)")
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.77.0.9/24", "gateway": "10.77.0.254"}, {"address": "fd77::9/64"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    conf, pod = world.conf(cniVersion="1.0.0", ipam=ipam), world.pod()
    env = {"CNI_PATH": str(STATIC.parent), "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web"}
    call = {verb: world.env(verb, "c1", pod) | env for verb in ("ADD", "CHECK", "DEL")}
    added = netns.call(world.node, alone.run, call["ADD"], conf)
    assert added.status == 0, added.stdout
    assert [entry["gateway"] for entry in body(added)["ips"]] == ["10.77.0.254", "fd77::1"]
    assert pinging(pod, "10.77.0.254")
    again = world.conf(cniVersion="1.0.0", ipam=ipam, prevResult=body(added))
    for verb in ("CHECK", "DEL", "DEL"):
        assert netns.call(world.node, alone.run, call[verb], again) == Reply(0, b"")
    assert world.left() == []


def test_host_local_loads_nothing_of_it(world: Any) -> None:
    script = (
        "import os, sys; from nodenet.cni.alone import run; reply = run(dict(os.environ), sys.stdin.buffer.read());"
        "assert reply.status == 0, reply.stdout;"
        "print([name for name in ('delegate', 'child', 'reference') if 'nodenet.cni.' + name in sys.modules])"
    )
    pod = world.pod()
    for verb in ("STATUS", "ADD", "DEL"):
        done = netns.run(
            world.node,
            [sys.executable, "-c", script],
            env=world.env(verb, "c1", pod),
            input=world.conf(ipMasq=True),
            capture_output=True,
            cwd=Path(child.__file__).parents[2],
            timeout=30,
        )
        assert (done.stdout, done.stderr) == (b"[]\n", b"")


def test_an_interface_of_somebody_elses_keeps_its_address(node: Delegating) -> None:
    pod = node.world.pod()
    netns.run(pod, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"], check=True)
    (node.folder / "leases/c1").touch()
    assert body(node.call("ADD", "c1", pod))["code"] == 103
    assert (node.log, node.leases) == ([], ["c1"])
