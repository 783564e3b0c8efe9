"""Somebody takes away what enforcement rests on: the agent puts it back and says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nodenet.agent import attachment
from nodenet.bpf import tcx
from nodenet.link import netns
from nodenet.link.handle import Link
from tests.e2e.labs import Lab, nodenet, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


def status(lab: Lab) -> Any:
    return json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)


def repaired(lab: Lab, what: str, before: Any, words: str) -> bool:
    """Whether it was counted since, and told."""
    now = status(lab)
    counted = now["repairs"].get(what, 0) > before["repairs"].get(what, 0)
    return counted and any(words in problem for problem in now["problems"])


def interfaces(lab: Lab) -> list[str]:
    rows = json.loads(nodenet("endpoint", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    return [row["interface"] for row in rows]


def programs(lab: Lab, interface: str) -> dict[str, list[int]]:
    """The kernel's numbers of what is attached to each side."""
    node = f"nn.{lab.name}.node1"
    with Link(node) as link:
        return netns.call(node, attachment.attached_ids, link, link.require(interface).index)


def take_away(lab: Lab, interface: str) -> None:
    node = f"nn.{lab.name}.node1"
    if attachment.mechanism() is attachment.Mechanism.CLSACT:
        netns.run(node, ["tc", "qdisc", "del", "dev", interface, "clsact"], check=True)
        return
    with Link(node) as link:
        index = link.require(interface).index
    for name, hook in attachment.HOOKS.items():
        assert netns.call(node, tcx.detach, index, hook.tcx, name[:15])


def test_programs_of_every_pod(shop: Lab) -> None:
    before, names = status(shop), interfaces(shop)
    attached = {name: programs(shop, name) for name in names}
    assert all(len(ids) == 1 for found in attached.values() for ids in found.values())
    for name in names:
        take_away(shop, name)
    until(lambda: {name: programs(shop, name) for name in names} == attached, "all are back")
    until(
        lambda: repaired(shop, "program", before, "had lost endpoint_egress and endpoint_ingress: put back"),
        "status names the repair",
    )
    assert status(shop)["repairs"]["program"] - before["repairs"].get("program", 0) == 2 * len(names)


@pytest.mark.parametrize("how", ["nomaster", "down"])
def test_a_pods_place_in_the_bridge(shop: Lab, how: str) -> None:
    """As systemd-networkd does with an interface that its configuration matches."""
    before, node = status(shop), f"nn.{shop.name}.node1"
    [name, *_] = interfaces(shop)

    def place() -> tuple[int, bool]:
        with Link(node) as link:
            found = link.require(name)
            return found.master, found.up

    right = place()
    assert right[0] != 0
    assert right[1]
    netns.run(node, ["ip", "link", "set", name, how], check=True)
    words = {"nomaster": f"its interface {name} was removed from cni0: put back", "down": f"{name} is down: put back"}
    until(lambda: place() == right, "the interface is a port of the bridge")
    until(lambda: repaired(shop, "bridge port", before, words[how]), "status names the repair")


def test_udev_has_no_reason_to_change_a_mac(shop: Lab) -> None:
    """MACAddressPolicy=persistent, the default, changes addresses that the kernel chose (1, NET_ADDR_RANDOM)."""
    [name, *_] = interfaces(shop)
    files = " ".join(f"/sys/class/net/{one}/addr_assign_type" for one in (name, "cni0"))
    script = f"mount -t sysfs -o ro none /sys && cat {files}"
    done = netns.run(
        f"nn.{shop.name}.node1", ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "3"], "expected NET_ADDR_SET"


@pytest.mark.parametrize("how", ["detach", "unpin"])
def test_socket_programs(shop: Lab, how: str) -> None:
    before, folder = status(shop), Path(status(shop)["datapath"]["bpffs"]) / "links"
    link = folder / "sock_connect4"
    if how == "detach":
        subprocess.run(["bpftool", "link", "detach", "pinned", link], check=True)
    else:
        link.unlink()
    until(
        lambda: repaired(shop, "socket program", before, "the node's cgroup had lost sock_connect4"),
        "status names the repair",
    )
    cgroup = status(shop)["datapath"]["cgroup"]
    shown = subprocess.run(["bpftool", "-j", "cgroup", "show", cgroup], capture_output=True, check=True)
    assert sum(entry["name"] == "sock_connect4" for entry in json.loads(shown.stdout)) == 1
    assert shop.fetch("shop", shop.pods("shop", "web")[0]["metadata"]["name"], "http://api/") != ""


def test_a_pin(shop: Lab) -> None:
    before, pin = status(shop), Path(status(shop)["datapath"]["bpffs"]) / "maps" / "nn_policy"
    pin.unlink()
    until(lambda: repaired(shop, "pin", before, "pins of map nn_policy were gone"), "status names the repair")
    assert pin.exists()
