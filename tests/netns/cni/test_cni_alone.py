"""ADD and DEL without an agent, in real namespaces: what is made, what works, and that nothing is left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import signals
from nodenet.cni.attach import STEPS
from nodenet.cni.errors import CniError, Code
from nodenet.cni.plugin import Plugin
from nodenet.cni.records import Records
from nodenet.cni.request import parse
from nodenet.link import netns, sysctl
from nodenet.link.handle import Link

pytestmark = pytest.mark.kernel

FAMILIES = {
    "ipv4": [[{"subnet": "10.77.0.0/24"}]],
    "ipv6": [[{"subnet": "fd77::/64"}]],
    "dual": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_pods_reach_the_gateway_and_each_other(world: Any, pinging: Any, family: str) -> None:
    conf = world.conf(FAMILIES[family], mtu=1400)
    pods = [world.pod(), world.pod()]
    results = []
    for number, pod in enumerate(pods):
        reply = world.call("ADD", f"c{number}", pod, conf)
        assert reply.status == 0, reply.stdout
        results.append(json.loads(reply.stdout))
    for mine, other in ((0, 1), (1, 0)):
        for ip, peer in zip(results[mine]["ips"], results[other]["ips"], strict=True):
            assert pinging(pods[mine], ip["gateway"])
            assert pinging(pods[mine], peer["address"].partition("/")[0])
            assert pinging(world.node, ip["address"].partition("/")[0])
    with Link(pods[0]) as pod_link, Link(world.node) as node:
        inside, outside = pod_link.require("eth0"), node.require(results[0]["interfaces"][1]["name"])
        assert (inside.mtu, outside.mtu, node.require("nn0").mtu) == (1400, 1400, 1400)
        assert inside.mac == results[0]["interfaces"][2]["mac"]
        assert node.require("nn0").mac == results[0]["interfaces"][0]["mac"]
    for number, pod in enumerate(pods):
        assert world.call("DEL", f"c{number}", pod, conf).status == 0
        assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


def test_ipv6_is_the_pods_own_and_forwarding_is_on(world: Any) -> None:
    pod = world.pod()
    assert world.call("ADD", "c1", pod).status == 0
    wanted = {"accept_ra": "0", "disable_ipv6": "0", "keep_addr_on_down": "1"}
    assert {key: sysctl.read(f"ipv6/conf/eth0/{key}", pod) for key in wanted} == wanted
    assert sysctl.read("ipv4/ip_forward", world.node) == "1"
    assert sysctl.read("ipv6/conf/all/forwarding", world.node) == "1"


def test_the_record_is_what_the_agent_needs(world: Any) -> None:
    pod = world.pod()
    assert world.call("ADD", "c1", pod).status == 0
    (record,), problems = Records(world.run_dir).all()
    assert problems == []
    endpoint = record.endpoint
    assert (str(endpoint.pod), endpoint.pod_uid, endpoint.netns) == ("shop/c1", "u-c1", pod)
    assert endpoint.ips == (ip_address("10.77.0.2"), ip_address("fd77::2"))
    with Link(world.node) as node, Link(pod) as inside:
        assert node.require(endpoint.host_ifname).index == endpoint.host_ifindex
        assert node.require(endpoint.host_ifname).port_state == 3
        assert inside.require("eth0").mac == endpoint.mac


def test_a_second_add_fails_and_leaves_the_first_alone(world: Any, pinging: Any) -> None:
    pod = world.pod()
    assert world.call("ADD", "c1", pod).status == 0
    before = world.left()
    for container in ("c1", "c2"):
        reply = world.call("ADD", container, pod)
        assert reply.status == 1
        assert json.loads(reply.stdout)["code"] == 103
    assert world.left() == before
    assert pinging(pod, "10.77.0.1")


def test_an_add_leaves_a_pod_alone_whose_record_was_lost(world: Any, pinging: Any) -> None:
    pod = world.pod()
    assert world.call("ADD", "c1", pod).status == 0
    (world.run_dir / "endpoints/c1-eth0.json").unlink()
    before = world.left()
    reply = world.call("ADD", "c1", pod)
    assert json.loads(reply.stdout)["code"] == 103
    assert "already has an interface eth0" in json.loads(reply.stdout)["msg"]
    assert world.left() == before
    assert pinging(pod, "10.77.0.1")
    assert world.call("DEL", "c1", pod).status == 0


def test_del_needs_neither_namespace_nor_lease_nor_record(world: Any) -> None:
    pod = world.pod()
    for spoil in ("namespace", "netns variable", "lease", "record", "interface", "all"):
        assert world.call("ADD", "c1", pod).status == 0, spoil
        if spoil in ("lease", "all"):
            for path in (world.leases / "net").glob("[0-9f]*"):
                path.unlink()
        if spoil in ("record", "all"):
            (world.run_dir / "endpoints/c1-eth0.json").unlink()
        if spoil in ("interface", "all"):
            with Link(pod) as link:
                link.delete("eth0")
        if spoil in ("namespace", "all"):
            netns.delete(pod)
        for _ in range(2):
            reply = world.call("DEL", "c1", "" if spoil == "netns variable" else pod)
            assert reply == (type(reply)(0, b"")), spoil
        # Without any trace the number of the endpoint is not looked for: the next ADD takes it.
        left = [name for name in world.left() if spoil != "all" or not name.isdigit()]
        assert left == [], spoil
        if spoil == "namespace":
            pod = world.pod()
    assert world.call("DEL", "never-was", "/run/netns/never-was").status == 0


def test_del_of_a_pod_that_the_reference_plugin_wired(world: Any) -> None:
    """A node that moves over in place: another name for the node's end, a lease, no record."""
    pod = world.pod()
    assert world.call("ADD", "c1", pod).status == 0
    (record,), _ = Records(world.run_dir).all()
    Records(world.run_dir).drop(record.owner)
    with Link(world.node) as node:
        node.set(record.endpoint.host_ifname, state="down")
        node.set(record.endpoint.host_ifname, ifname="vethabc")
    assert world.call("DEL", "c1", pod).status == 0
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_before_any_step_leaves_nothing(world: Any, step: str) -> None:
    pod = world.pod()

    def fail(name: str) -> None:
        if name == step:
            raise OSError(28, "No space left on device", "/somewhere")

    reply = world.failing("ADD", "c1", pod, fail)
    assert reply.status == 1
    assert json.loads(reply.stdout)["code"] == 5
    assert "network net: ADD: /somewhere: No space left on device" in json.loads(reply.stdout)["msg"]
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []
    assert world.call("ADD", "c1", pod).status == 0


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_any_step_is_cleaned_by_del(world: Any, step: str) -> None:
    pod = world.pod()
    child = os.fork()
    if child == 0:
        netns.enter(world.node)
        Plugin(step=lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None).run(
            parse(world.env("ADD", "c1", pod), world.conf())
        )
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert world.call("DEL", "c1", pod).status == 0
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


def test_an_add_after_a_kill_does_not_leak_the_lease(world: Any) -> None:
    pod, other = world.pod(), world.pod()
    child = os.fork()
    if child == 0:
        netns.enter(world.node)
        Plugin(step=lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == "bridge" else None).run(
            parse(world.env("ADD", "c1", pod), world.conf())
        )
        os._exit(3)
    os.waitpid(child, 0)
    assert world.call("ADD", "c1", other).status == 0
    assert sorted(path.name for path in (world.leases / "net").glob("[0-9f]*")) == ["10.77.0.2", "fd77::2"]


def test_an_exhausted_pool_names_network_and_range(world: Any) -> None:
    conf = world.conf([[{"subnet": "10.77.0.0/30"}]])
    first, second = world.pod(), world.pod()
    assert world.call("ADD", "c1", first, conf).status == 0
    before = world.left()
    reply = world.call("ADD", "c2", second, conf)
    assert reply.status == 1
    body = json.loads(reply.stdout)
    assert body["code"] == 101
    assert body["msg"] == "network net: no free address in 10.77.0.1-10.77.0.2: all 1 are leased"
    assert world.left() == before
    assert world.interfaces(second) == ["lo"]


@pytest.mark.parametrize(
    ("netns_path", "code"),
    [("/run/netns/does-not-exist", 3), ("/proc/self/ns/net", 4), ("/etc/hostname", 4), ("/proc/self/ns/uts", 4)],
)
def test_a_wrong_namespace_is_refused(world: Any, netns_path: str, code: int) -> None:
    path = netns_path.replace("self", "thread-self")
    reply = world.call("ADD", "c1", path)
    assert (reply.status, json.loads(reply.stdout)["code"]) == (1, code)
    assert world.left() == []


def test_requested_address_and_mac(world: Any, pinging: Any) -> None:
    pod = world.pod()
    reply = world.call("ADD", "c1", pod, args="IP=10.77.0.99;MAC=02:00:00:00:00:07")
    body = json.loads(reply.stdout)
    assert [ip["address"] for ip in body["ips"]] == ["10.77.0.99/24", "fd77::2/64"]
    assert body["interfaces"][2]["mac"] == "02:00:00:00:00:07"
    assert pinging(pod, "10.77.0.1")


def test_routes_and_hairpin(world: Any) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(world.leases),
        "subnet": "10.77.0.0/24",
        "routes": [{"dst": "10.9.0.0/16", "mtu": 1300, "priority": 50}, {"dst": "0.0.0.0/0", "gw": "10.77.0.9"}],
    }
    pod = world.pod()
    reply = world.call("ADD", "c1", pod, world.conf(ipam=ipam, hairpinMode=True))
    assert reply.status == 0, reply.stdout
    shown = netns.run(pod, ["ip", "route"], capture_output=True, text=True).stdout
    assert "10.9.0.0/16 via 10.77.0.1 dev eth0 proto static metric 50 mtu 1300" in shown
    assert "default via 10.77.0.9 dev eth0" in shown
    with Link(world.node) as node:
        assert node.require(json.loads(reply.stdout)["interfaces"][1]["name"]).hairpin


def test_a_foreign_address_on_the_bridge_needs_force(world: Any) -> None:
    netns.run(world.node, ["ip", "link", "add", "nn0", "type", "bridge"], check=True)
    netns.run(world.node, ["ip", "addr", "add", "10.88.0.1/24", "dev", "nn0"], check=True)
    pod = world.pod()
    reply = world.call("ADD", "c1", pod)
    assert json.loads(reply.stdout)["code"] == 7
    assert "bridge nn0 has address 10.88.0.1/24, wanted 10.77.0.1/24" in json.loads(reply.stdout)["msg"]
    assert world.left() == []
    assert world.call("ADD", "c1", pod, world.conf(forceAddress=True)).status == 0
    shown = netns.run(world.node, ["ip", "-br", "addr", "show", "nn0"], capture_output=True, text=True).stdout
    assert "10.77.0.1/24" in shown
    assert "10.88.0.1/24" not in shown


def test_an_interface_that_is_no_bridge_is_refused(world: Any) -> None:
    netns.run(world.node, ["ip", "link", "add", "nn0", "type", "veth", "peer", "nn1"], check=True)
    reply = world.call("ADD", "c1", world.pod())
    assert (reply.status, json.loads(reply.stdout)["code"]) == (1, 104)
    assert "interface nn0 is a veth, not a bridge" in json.loads(reply.stdout)["msg"]
    assert world.left() == ["nn1"]


def test_a_lease_folder_that_cannot_be_written_is_told(world: Any) -> None:
    world.leases.write_text("a file where the folder should be")
    reply = world.call("ADD", "c1", world.pod())
    assert (reply.status, json.loads(reply.stdout)["code"]) == (1, 5)
    assert "leases" in json.loads(reply.stdout)["msg"]


class TestExecutable:
    """The real executable, with nobody listening on the agent's socket."""

    def test_it_does_the_work_alone(self, world: Any, pinging: Any) -> None:
        pod = world.pod()
        added = world.execute("ADD", "c1", pod)
        assert added.returncode == 0, (added.stdout, added.stderr)
        assert json.loads(added.stdout)["ips"][0]["address"] == "10.77.0.2/24"
        assert pinging(pod, "10.77.0.1")
        deleted = world.execute("DEL", "c1", pod)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, b"", b"")
        assert world.left() == []

    def test_version(self, world: Any) -> None:
        done = world.execute("VERSION", "", conf=b'{"cniVersion":"1.0.0"}')
        assert json.loads(done.stdout)["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]

    def test_an_unknown_verb_is_code_4(self, world: Any) -> None:
        done = world.execute("PUT", "c1", world.pod())
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 4)

    def test_require_agent_is_code_11(self, world: Any) -> None:
        done = world.execute("ADD", "c1", world.pod(), world.conf(requireAgent=True))
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 11)
        assert world.left() == []

    def test_require_agent_keeps_no_pod_from_going(self, world: Any) -> None:
        """The agent was there when it came, and is away: a pod can be removed, looked at, and collected."""
        pods, conf = [world.pod(), world.pod()], world.conf(requireAgent=True)
        results = [json.loads(world.execute("ADD", f"c{n}", pod).stdout) for n, pod in enumerate(pods)]
        checked = world.conf(requireAgent=True, prevResult=results[0])
        assert world.execute("CHECK", "c0", pods[0], checked).returncode == 0
        deleted = world.execute("DEL", "c0", pods[0], conf)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, b"", b"")
        assert world.interfaces(pods[0]) == ["lo"]
        collected = world.execute("GC", "", "", world.conf(requireAgent=True, **{"cni.dev/valid-attachments": []}))
        assert (collected.returncode, collected.stdout) == (0, b"")
        assert world.left() == []

    def test_bad_input_is_json_too(self, world: Any) -> None:
        done = world.execute("ADD", "c1", world.pod(), b"{nonsense")
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 6)

    def test_a_broken_installation_says_so(self, world: Any, tmp_path: Path) -> None:
        copy = tmp_path / "bin/nodenet"
        copy.parent.mkdir()
        copy.write_bytes(world.program.read_bytes())
        copy.chmod(0o755)
        done = world.execute("ADD", "c1", world.pod(), program=copy)
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 11)


def test_an_undoing_that_fails_does_not_hide_why(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds the leases when the ADD fails: its address stays, for the DEL that follows, and all else goes."""
    monkeypatch.setattr("nodenet.cni.ipam.LOCK_SECONDS", 0.05)
    pod, held = world.pod(), []

    def step(name: str) -> None:
        if name == "routes":
            lock = (world.leases / "net/lock").open()
            fcntl.flock(lock, fcntl.LOCK_EX)
            held.append(lock)
            raise CniError(Code.KERNEL_REFUSED, "no room for routes")

    reply = world.failing("ADD", "c1", pod, step)
    assert json.loads(reply.stdout)["code"] == 104
    assert "no room for routes" in json.loads(reply.stdout)["msg"]
    assert world.interfaces(pod) == ["lo"]
    assert sorted(world.left()) == ["10.77.0.2", "fd77::2"]
    held[0].close()
    assert world.call("DEL", "c1", pod).status == 0
    assert world.left() == []


@pytest.mark.parametrize("step", ["lease", "settle", "done"])
def test_sigterm_undoes(world: Any, step: str) -> None:
    """A runtime that gives up ends the executable, which runs without an agent."""
    pod = world.pod()
    child = os.fork()
    if child == 0:
        netns.enter(world.node)
        signals.block_termination_signals()

        def asked_to_end(name: str) -> None:
            if name == step:
                os.kill(os.getpid(), signal.SIGTERM)
            signals.raise_if_signalled()

        plugin = Plugin(step=asked_to_end)
        try:
            plugin.run(parse(world.env("ADD", "c1", pod), world.conf()))
        except SystemExit as end:
            os._exit(int(str(end)))
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


def test_sigterm_ends_the_executable_while_it_waits(world: Any) -> None:
    """For a lock that somebody keeps."""
    (world.leases / "net").mkdir(parents=True)
    pod = world.pod()
    with (world.leases / "net/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        caller = netns.popen(world.node, [world.program], env=world.env("ADD", "c1", pod), stdin=subprocess.PIPE)
        caller.stdin.write(world.conf())
        caller.stdin.close()
        while not list((world.run_dir / "endpoints").glob("*.busy")):
            time.sleep(0.01)
        time.sleep(0.1)
        caller.terminate()
        assert caller.wait(2) == 128 + signal.SIGTERM
    assert world.left() == []
    assert world.call("ADD", "c1", pod).status == 0
