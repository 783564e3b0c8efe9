"""Several networks for one pod or on one node: routes beside each other, and an address of the node once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nodenet.link import netns

from .test_verbs import added, error

pytestmark = pytest.mark.kernel
BRIDGES = {"net": "nn0", "second": "nn1"}
PODS = "10.44.3.0/24\nfd44:3::/64\n"


def conf(world: Any, name: str, number: int, **keys: Any) -> dict[str, Any]:
    ranges = [[{"subnet": f"10.7{number}.0.0/24"}], [{"subnet": f"fd7{number}::/64"}]]
    routes = [{"dst": "10.99.0.0/16"}, {"dst": "fd99::/64"}]
    ipam = {"type": "host-local", "dataDir": str(world.leases), "ranges": ranges, "routes": routes}
    return {"name": name, "bridge": BRIDGES[name], "ipam": ipam} | keys


def verb(world: Any, what: str, ifname: str, pod: str, **keys: Any) -> Any:
    """One verb on another interface of the pod."""
    env = world.env(what, "c1", pod) | {"CNI_IFNAME": ifname, "PATH": "/usr/sbin:/usr/bin"}
    done = netns.run(world.node, [world.alone], env=env, input=world.conf(**keys), capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b""), (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def routes(pod: str, network: str) -> list[str]:
    """Interfaces that have a route to a network, in the kernel's order."""
    family = "-6" if ":" in network else "-4"
    out = netns.run(pod, ["ip", family, "route", "show", network], capture_output=True, text=True).stdout
    return [words[words.index("dev") + 1] for line in out.splitlines() if "dev" in (words := line.split())]


@pytest.mark.parametrize("other", [("second", 2), ("net", 1)], ids=["another network", "the same network"])
def test_two_attachments_with_the_same_routes(world: Any, other: tuple[str, int]) -> None:
    """Default routes and ipam.routes of both families, as the reference's bridge has it: the newer IPv4 route is first,
    IPv6 ones are next hops of one route. CHECK finds each, and a DEL takes its own."""
    pod = world.pod()
    confs = {"eth0": conf(world, "net", 1), "net1": conf(world, *other)}
    results = {ifname: verb(world, "ADD", ifname, pod, **keys) for ifname, keys in confs.items()}
    for network in ("default", "10.99.0.0/16"):
        assert routes(pod, network) == ["net1", "eth0"]
    assert sorted(routes(pod, "fd99::/64")) == ["eth0", "net1"]
    for ifname, keys in confs.items():
        verb(world, "CHECK", ifname, pod, prevResult=results[ifname], **keys)
    verb(world, "DEL", "eth0", pod, **confs["eth0"])
    for network in ("default", "10.99.0.0/16", "fd99::/64"):
        assert routes(pod, network) == ["net1"]
    verb(world, "CHECK", "net1", pod, prevResult=results["net1"], **confs["net1"])
    verb(world, "DEL", "net1", pod, **confs["net1"])
    assert world.interfaces(pod) == ["lo"]


class TestPodNetworks:
    """Addresses of the node's pod networks."""

    @pytest.fixture(autouse=True)
    def networks(self, world: Any) -> None:
        world.run_dir.mkdir()
        (world.run_dir / "pod-cidrs").write_text(PODS)

    @staticmethod
    def conf(world: Any, name: str, **ipam: Any) -> dict[str, Any]:
        ipam = {"type": "nodenet", "dataDir": str(world.leases)} | ipam
        # One bridge: two with one gateway address are another matter.
        return {"name": name, "bridge": "nn0", "ipam": ipam}

    @pytest.mark.parametrize(
        "ipam",
        [
            {},
            {"type": "host-local"},
            {"type": "host-local", "ranges": [[{"subnet": "10.44.3.0/24"}], [{"subnet": "fd44:3::/64"}]]},
            {"type": "host-local", "ranges": [[{"subnet": "10.44.0.0/16", "rangeStart": "10.44.3.2"}]]},
        ],
        ids=["nodenet", "no ranges", "the same ranges", "a range that overlaps"],
    )
    def test_each_is_given_once_whatever_network_asks(self, world: Any, ipam: dict[str, Any]) -> None:
        given = []
        for number, name in enumerate(("net", "second", "second", "net")):
            keys = self.conf(world, name, **(ipam if name == "second" else {})) | {"isDefaultGateway": name == "net"}
            result = added(world, f"c{number}", world.pod(), **keys)
            given.append(result["ips"][0]["address"].partition("/")[0])
        assert given == ["10.44.3.2", "10.44.3.3", "10.44.3.4", "10.44.3.5"]
        assert world.call("DEL", "c1", "", world.conf(**self.conf(world, "second", **ipam))).status == 0
        # Round and round: the one that is free again comes when all others have been given.
        assert not (world.leases / "second/10.44.3.3").exists()

    def test_a_requested_one_is_refused(self, world: Any) -> None:
        added(world, "c1", world.pod(), **self.conf(world, "net"))
        keys = self.conf(world, "second") | {"runtimeConfig": {"ips": ["10.44.3.2"]}}
        code, message = error(world.call("ADD", "c2", world.pod(), world.conf(**keys)))
        assert (code, "10.44.3.2 is leased in another network of this node" in message) == (102, True)
        keys["runtimeConfig"] = {"ips": ["10.44.3.9"]}
        assert added(world, "c2", str(world.pods[-1]), **keys)["ips"][0]["address"] == "10.44.3.9/24"

    def test_a_pool_that_others_have_used_up_is_empty(self, world: Any) -> None:
        (world.run_dir / "pod-cidrs").write_text("10.44.3.0/29\n")
        for number in range(5):
            added(world, f"c{number}", world.pod(), **self.conf(world, "net"))
        assert error(world.call("STATUS", "", "", world.conf(**self.conf(world, "second"))))[0] == 50
        assert error(world.call("ADD", "d", world.pod(), world.conf(**self.conf(world, "second"))))[0] == 101

    def test_at_once(self, world: Any) -> None:
        pods = [world.pod() for _ in range(12)]

        def add(number: int) -> Any:
            keys = self.conf(world, ("net", "second", "third")[number % 3])
            return world.call("ADD", f"c{number}", pods[number], world.conf(**keys))

        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(add, range(12)))
        assert {reply.status for reply in replies} == {0}, replies
        assert len({json.loads(reply.stdout)["ips"][0]["address"] for reply in replies}) == 12

    def test_other_ranges_are_each_networks_own(self, world: Any) -> None:
        """The same private network behind two bridges."""
        for name, bridge in BRIDGES.items():
            ipam = {"type": "host-local", "dataDir": str(world.leases), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
            result = added(world, f"c-{name}", world.pod(), name=name, bridge=bridge, isDefaultGateway=False, ipam=ipam)
            assert result["ips"][0]["address"] == "10.88.0.2/24"
