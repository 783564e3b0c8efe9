"""Each key of the bridge plugin, by what it does to traffic and to the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni.conf import parse
from nodenet.link import netns, sysctl
from nodenet.link.handle import Link

pytestmark = pytest.mark.kernel


def output(where: Any, *argv: str) -> str:
    return str(netns.run(where, argv, capture_output=True, text=True, check=True).stdout)


def added(world: Any, container: str, pod: str, **keys: Any) -> dict[str, Any]:
    reply = world.call("ADD", container, pod, world.conf(**keys))
    assert reply.status == 0, reply.stdout
    return dict(json.loads(reply.stdout))


def removed(world: Any, *containers: str, **keys: Any) -> None:
    for container in containers:
        assert world.call("DEL", container, "", world.conf(**keys)).status == 0


@pytest.fixture
def outside(world: Any) -> Iterator[str]:
    """A machine beyond the node, 192.0.2.2 and 2001:db8::2, that knows nothing of pods."""
    path = world.pod()
    fd = Path(path)
    for line in (
        f"ip link add up0 type veth peer name eth0 netns {fd.name}",
        "ip addr add 192.0.2.1/24 dev up0",
        "ip addr add 2001:db8::1/64 dev up0 nodad",
        "ip link set up0 up",
    ):
        netns.run(world.node, line.split(), check=True)
    for line in (
        "ip addr add 192.0.2.2/24 dev eth0",
        "ip addr add 2001:db8::2/64 dev eth0 nodad",
        "ip link set eth0 up",
    ):
        netns.run(path, line.split(), check=True)
    return str(path)


def test_ip_masq(world: Any, pinging: Any, outside: str) -> None:
    pods = [world.pod() for _ in range(3)]
    added(world, "plain", pods[0])
    for number in (1, 2):
        added(world, f"m{number}", pods[number], ipMasq=True)
    for address in ("192.0.2.2", "2001:db8::2"):
        assert not pinging(pods[0], address, 0.3)
        assert pinging(pods[1], address)
    assert pinging(pods[1], "10.77.0.2")
    rules = output(world.node, "nft", "list", "ruleset")
    assert "ip saddr @pods ip daddr != 10.77.0.0/24 ip daddr != 224.0.0.0/4 counter packets 1 " in rules
    assert "ip6 saddr @pods ip6 daddr != fd77::/64 ip6 daddr != ff00::/8 counter packets 1 " in rules
    removed(world, "m1")
    assert pinging(pods[2], "192.0.2.2")
    assert "elements = { 10.77.0.4 }" in output(world.node, "nft", "list", "ruleset")
    # By the configuration of now: DEL finds what an earlier one made.
    removed(world, "m2", "plain")
    assert output(world.node, "nft", "list", "ruleset") == ""
    assert world.left() == ["up0"]


def test_two_networks_of_similar_names_keep_their_own_masquerading(world: Any) -> None:
    for name, subnet in (("a", "10.1.0.0/24"), ("a-10.1.0.0_24", "10.2.0.0/24")):
        ranges = [[{"subnet": subnet}]]
        added(world, "c" + name, world.pod(), name=name, bridge=f"b{len(name)}", ipMasq=True, ranges=ranges)
    removed(world, "ca", name="a", bridge="b1", ranges=[[{"subnet": "10.1.0.0/24"}]])
    tables = output(world.node, "nft", "list", "tables")
    assert tables == "table ip nodenet-masq-a-10.1.0.0_24-10.2.0.0/24\n"


def test_macspoofchk(world: Any, pinging: Any) -> None:
    for number, (check, works) in enumerate(((False, True), (True, False))):
        pod = world.pod()
        added(world, f"c{number}", pod, macspoofchk=check)
        assert pinging(pod, "10.77.0.1")
        netns.run(pod, ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"], check=True)
        assert pinging(pod, "10.77.0.1", 0.5) is works
        removed(world, f"c{number}")
    assert world.left() == []


def test_port_isolation(world: Any, pinging: Any) -> None:
    pods = [world.pod() for _ in range(3)]
    for number, pod in enumerate(pods):
        added(world, f"c{number}", pod, portIsolation=number > 0)
    assert pinging(pods[1], "10.77.0.1")
    assert pinging(pods[1], "10.77.0.2")
    assert not pinging(pods[1], "10.77.0.4", 0.4)


def test_hairpin_mode(world: Any) -> None:
    for number, mode in enumerate((False, True)):
        result = added(world, f"c{number}", world.pod(), hairpinMode=mode)
        with Link(world.node) as node:
            assert node.require(result["interfaces"][1]["name"]).hairpin is mode


def test_promisc_mode(world: Any) -> None:
    added(world, "c1", world.pod(), promiscMode=True)
    assert "PROMISC" in output(world.node, "ip", "link", "show", "nn0")


def test_enabledad(world: Any, pinging: Any) -> None:
    pod = world.pod()
    sysctl.write("ipv6/conf/default/dad_transmits", 1, pod)
    added(world, "c1", pod, enabledad=True)
    assert sysctl.read("ipv6/conf/eth0/accept_dad", pod) == "1"
    assert sysctl.read("ipv6/conf/eth0/enhanced_dad", pod) == "1"
    assert "tentative" not in output(pod, "ip", "-6", "addr", "show", "eth0")
    assert pinging(pod, "fd77::1")
    # An address that somebody else has is an error, and nothing is left.
    other = world.pod()
    netns.run(pod, ["ip", "addr", "add", "fd77::99/64", "dev", "eth0", "nodad"], check=True)
    reply = world.call("ADD", "c2", other, world.conf(enabledad=True), args="IP=fd77::99")
    assert json.loads(reply.stdout)["code"] == 104
    assert "fd77::99 of eth0: duplicate detection found another owner" in json.loads(reply.stdout)["msg"]
    assert world.interfaces(other) == ["lo"]
    removed(world, "c1")
    assert world.left() == []


def test_no_addresses_at_all(world: Any) -> None:
    pods = [world.pod(), world.pod()]
    up = added(world, "c1", pods[0], ipam={}, macspoofchk=True)
    down = added(world, "c2", pods[1], ipam=None, disableContainerInterface=True)
    assert (up["ips"], up["routes"], down["ips"]) == ([], [], [])
    assert not (world.leases / "net").exists()
    with Link(pods[0]) as one, Link(pods[1]) as other:
        assert (one.require("eth0").up, other.require("eth0").up) == (True, False)
    check = world.conf(ipam={}, disableContainerInterface=True, prevResult=down)
    assert world.call("CHECK", "c2", pods[1], check).status == 0
    gc = world.conf(ipam={}, **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert world.call("GC", "", "", gc).status == 0
    assert world.interfaces(pods[1]) == ["lo"]
    removed(world, "c1", ipam={})
    assert world.left() == []


def test_resolv_conf(world: Any) -> None:
    path = world.folder / "resolv.conf"
    path.write_text("nameserver 10.0.0.10\nsearch svc.local local\noptions ndots:5\n")
    ipam = json.loads(world.conf())["ipam"] | {"resolvConf": str(path)}
    result = added(world, "c1", world.pod(), ipam=ipam)
    wanted = {"nameservers": ["10.0.0.10"], "search": ["svc.local", "local"], "options": ["ndots:5"]}
    assert result["dns"] == wanted
    path.unlink()
    reply = world.call("ADD", "c2", world.pod(), world.conf(ipam=ipam))
    assert json.loads(reply.stdout)["code"] == 5


def test_several_ranges_addresses_and_macs_from_every_place(world: Any, pinging: Any) -> None:
    ranges = [
        [{"subnet": "10.77.0.0/30"}, {"subnet": "10.78.0.0/24", "rangeStart": "10.78.0.9", "gateway": "10.78.0.254"}],
        [{"subnet": "fd77::/64"}],
    ]
    first = added(world, "c1", world.pod(), ranges=ranges)
    assert [ip["address"] for ip in first["ips"]] == ["10.77.0.2/30", "fd77::2/64"]
    pod = world.pod()
    second = added(world, "c2", pod, ranges=ranges, forceAddress=True)
    assert [ip["address"] for ip in second["ips"]] == ["10.78.0.9/24", "fd77::3/64"]
    assert pinging(pod, "10.78.0.254")
    asked = {
        "args": {"cni": {"ips": ["10.78.0.30"], "mac": "02:00:00:00:00:11"}},
        "runtimeConfig": {"ips": ["fd77::30/64"], "mac": "02:00:00:00:00:12"},
    }
    third = added(world, "c3", world.pod(), ranges=ranges, forceAddress=True, **asked)
    assert [ip["address"] for ip in third["ips"]] == ["10.78.0.30/24", "fd77::30/64"]
    assert third["interfaces"][2]["mac"] == "02:00:00:00:00:12"
    asked = {"runtimeConfig": {"ipRanges": [[{"subnet": "10.79.0.0/24"}]]}}
    fourth = added(world, "c4", world.pod(), ranges=[[{"subnet": "fd77::/64"}]], forceAddress=True, **asked)
    assert [ip["address"] for ip in fourth["ips"]] == ["10.79.0.2/24", "fd77::31/64"]


def has_vlans(world: Any) -> bool:
    done = netns.run(
        world.node, ["ip", "link", "add", "probe0", "type", "bridge", "vlan_filtering", "1"], capture_output=True
    )
    netns.run(world.node, ["ip", "link", "del", "probe0"], capture_output=True)
    return done.returncode == 0


def test_vlan(world: Any, pinging: Any) -> None:
    if not has_vlans(world):
        reply = world.call("ADD", "c1", world.pod(), world.conf(vlan=100))
        body = json.loads(reply.stdout)
        assert body["code"] == 104
        assert "vlan: this kernel's bridges do not support VLANs (CONFIG_BRIDGE_VLAN_FILTERING)" in body["msg"]
        assert world.left() == []
        pytest.skip("this kernel's bridges do not support VLANs (CONFIG_BRIDGE_VLAN_FILTERING is not set)")
    pods = [world.pod() for _ in range(3)]
    for number, (pod, vlan) in enumerate(zip(pods, (100, 100, 200), strict=True)):
        keys = {"vlan": vlan, "preserveDefaultVlan": False, "vlanTrunk": [{"minID": 300, "maxID": 301}]}
        result = added(world, f"c{number}", pod, isDefaultGateway=vlan == 100, **keys)
        prev = world.conf(prevResult=result, isDefaultGateway=vlan == 100, **keys)
        assert world.call("CHECK", f"c{number}", pod, prev).status == 0
    assert pinging(pods[0], "10.77.0.1")
    assert pinging(pods[0], "10.77.0.3")
    assert not pinging(pods[0], "10.77.0.4", 0.4)


def test_pod_networks_of_the_node(world: Any) -> None:
    ipam = {"type": "nodenet", "dataDir": str(world.leases)}
    reply = world.call("ADD", "c1", world.pod(), world.conf(ipam=ipam))
    assert json.loads(reply.stdout)["code"] == 11
    assert "no agent is running on this node, and no agent has stored them" in json.loads(reply.stdout)["msg"]
    world.run_dir.mkdir()
    (world.run_dir / "pod-cidrs").write_text("10.44.3.0/24\nfd44:3::/64\n")
    for number, kind in enumerate(({"type": "nodenet"}, {"type": "host-local"}, {})):
        result = added(world, f"c{number}", world.pod(), ipam={"dataDir": str(world.leases)} | kind)
        assert [ip["address"] for ip in result["ips"]] == [f"10.44.3.{2 + number}/24", f"fd44:3::{2 + number}/64"]
    assert parse(world.conf(ipam=ipam), {}).ipam.sets == ()
