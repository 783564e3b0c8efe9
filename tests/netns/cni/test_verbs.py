"""CHECK, GC and STATUS in real namespaces: what each says of a node that is as it should be, and of one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nodenet.cni.ipam import Owner, Store
from nodenet.cni.records import Records
from nodenet.link import netns
from nodenet.link.handle import Link

pytestmark = pytest.mark.kernel


def added(world: Any, container: str, pod: str, **keys: Any) -> dict[str, Any]:
    reply = world.call("ADD", container, pod, world.conf(**keys))
    assert reply.status == 0, reply.stdout
    return dict(json.loads(reply.stdout))


def shell(where: Any, line: str) -> None:
    netns.run(where, ["sh", "-c", line], check=True, capture_output=True)


def error(reply: Any) -> tuple[int, str]:
    body = json.loads(reply.stdout)
    assert reply.status == 1
    assert set(body) <= {"cniVersion", "code", "msg", "details"}
    return body["code"], f"{body['msg']}; {body.get('details', '')}"


KEYS: dict[str, Any] = {"ipMasq": True, "macspoofchk": True, "hairpinMode": True, "portIsolation": True}


class TestCheck:
    @pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
    def test_it_agrees_with_what_add_made(self, world: Any, version: str) -> None:
        pod = world.pod()
        ipam = json.loads(world.conf())["ipam"] | {"routes": [{"dst": "10.9.0.0/16", "priority": 7, "table": 99}]}
        keys = KEYS | {"cniVersion": version, "ipam": ipam}
        result = added(world, "c1", pod, **keys)
        reply = world.call("CHECK", "c1", pod, world.conf(prevResult=result, **keys))
        assert (reply.status, reply.stdout) == (0, b"")

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            ("pod: ip addr del 10.77.0.2/24 dev eth0", "interface eth0 has no address 10.77.0.2/24"),
            ("pod: ip route del default", "no route to 0.0.0.0/0 via 10.77.0.1"),
            ("pod: ip link set eth0 down", "interface eth0 is down"),
            ("pod: ip link set eth0 address 02:00:00:00:00:09", "interface eth0 has MAC 02:00:00:00:00:09"),
            ("pod: ip link del eth0", "no interface eth0 in"),
            ("node: ip link set HOST nomaster", "is not a port of bridge nn0"),
            ("node: ip link set HOST type bridge_slave hairpin off", "is not in hairpin mode"),
            ("node: ip link set HOST type bridge_slave isolated off", "is not isolated"),
            ("node: ip addr del 10.77.0.1/24 dev nn0", "bridge nn0 has no address 10.77.0.1"),
            ("node: ip link set nn0 down", "bridge nn0 is down"),
            ("node: ip link del nn0", "no bridge nn0"),
            ("node: echo 0 > /proc/sys/net/ipv4/ip_forward", "net/ipv4/ip_forward is 0"),
            ("node: nft flush ruleset", "address 10.77.0.2 is not masqueraded"),
            ("node: nft delete table netdev nodenet-mac-HOST", "source MACs are not checked"),
            ("node: rm LEASES/net/10.77.0.2", "address 10.77.0.2 is not leased"),
            ("node: printf other > LEASES/net/10.77.0.2", "address 10.77.0.2 is leased to container other"),
            ("node: rm RUN/endpoints/c1-eth0.json", "no endpoint file"),
            ("node: echo { > RUN/endpoints/c1-eth0.json", "endpoint file: "),
        ],
    )
    def test_it_names_what_is_wrong(self, world: Any, spoil: str, words: str) -> None:
        pod = world.pod()
        result = added(world, "c1", pod, **KEYS)
        where, _, line = spoil.partition(": ")
        for word, value in (
            ("HOST", result["interfaces"][1]["name"]),
            ("LEASES", str(world.leases)),
            ("RUN", str(world.run_dir)),
        ):
            line = line.replace(word, value)
        shell(world.node if where == "node" else pod, line)
        code, message = error(world.call("CHECK", "c1", pod, world.conf(prevResult=result, **KEYS)))
        assert code == 106
        assert words in message

    def test_what_later_plugins_added_is_not_ours_to_judge(self, world: Any) -> None:
        pod = world.pod()
        result = added(world, "c1", pod)
        result["interfaces"].append({"name": "eth9", "sandbox": pod})
        result["ips"].append({"address": "192.0.2.9/24", "interface": 3})
        assert world.call("CHECK", "c1", pod, world.conf(prevResult=result)).status == 0

    def test_what_later_plugins_may_change_without_saying_so(self, world: Any) -> None:
        """SPEC.md, CHECK: "must allow for a later chained plugin to have modified networking resources"."""
        pod = world.pod()
        ipam = json.loads(world.conf())["ipam"] | {"routes": [{"dst": "10.9.0.0/16"}, {"dst": "fd09::/64"}]}
        result = added(world, "c1", pod, ipam=ipam)
        for line in (
            "ip link set eth0 mtu 1300",
            "ip link set eth0 promisc on txqueuelen 77",
            "ip route del default; ip route add default via 10.77.0.1 dev eth0 table 100",
            "ip -6 route del fd09::/64; ip -6 route add fd09::/64 via fd77::1 dev eth0 table 4711",
            "ip route add 192.0.2.0/24 via 10.77.0.1",
        ):
            shell(pod, line)
            reply = world.call("CHECK", "c1", pod, world.conf(prevResult=result, ipam=ipam))
            assert (reply.status, reply.stdout) == (0, b""), line
        shell(pod, "ip route flush table 100")
        code, message = error(world.call("CHECK", "c1", pod, world.conf(prevResult=result, ipam=ipam)))
        assert (code, "no route to 0.0.0.0/0 via 10.77.0.1" in message) == (106, True)

    def test_its_own_errors(self, world: Any) -> None:
        pod = world.pod()
        result = added(world, "c1", pod)
        assert error(world.call("CHECK", "c1", pod))[0] == 7
        assert error(world.call("CHECK", "c1", "/run/netns/gone", world.conf(prevResult=result)))[0] == 3
        assert error(world.call("CHECK", "c1", pod, world.conf(cniVersion="0.3.1", prevResult=result)))[0] == 1
        assert error(world.call("CHECK", "c2", pod, world.conf(prevResult=result)))[0] == 106


class TestGc:
    @staticmethod
    def gc(world: Any, *valid: str, call: Callable[..., Any] | None = None, **keys: Any) -> Any:
        attachments = [{"containerID": name, "ifname": "eth0"} for name in valid]
        conf = world.conf(**{"cni.dev/valid-attachments": attachments}, **keys)
        return (call or world.call)("GC", "", "", conf)

    def test_what_is_not_on_the_list_goes_and_the_rest_stays(self, world: Any, pinging: Any) -> None:
        pods = {name: world.pod() for name in ("keep", "drop", "other")}
        for name in ("keep", "drop"):
            added(world, name, pods[name], ipMasq=True)
        added(world, "other", pods["other"], name="second", bridge="nn1", ranges=[[{"subnet": "10.88.0.0/24"}]])
        assert self.gc(world, "keep").status == 0
        assert world.interfaces(pods["drop"]) == ["lo"]
        assert sorted(path.name for path in (world.leases / "net").glob("[0-9f]*")) == ["10.77.0.2", "fd77::2"]
        assert {record.owner.container_id for record in Records(world.run_dir).all()[0]} == {"keep", "other"}
        assert pinging(pods["keep"], "10.77.0.1")
        assert pinging(pods["other"], "10.88.0.1")
        assert self.gc(world, "keep").status == 0
        # An empty list is written as null by libcni.
        assert world.call("GC", "", "", world.conf(**{"cni.dev/valid-attachments": None})).status == 0
        assert self.gc(world, name="second", bridge="nn1").status == 0
        assert world.left() == ["nn1"]

    def test_leases_without_anything_else_go_too(self, world: Any) -> None:
        folder = world.leases / "net"
        folder.mkdir(parents=True)
        (folder / "10.77.0.7").write_bytes(b"gone\r\neth0")
        (folder / "10.77.0.8").write_bytes(b"old")  # the reference before 0.8
        (folder / "10.77.0.9").write_bytes(b"older")
        assert self.gc(world, "old").status == 0
        assert sorted(path.name for path in folder.glob("1*")) == ["10.77.0.8"]
        (folder / "10.77.0.10").write_bytes(b"")  # a crash of the reference
        assert self.gc(world).status == 0
        assert sorted(path.name for path in folder.glob("1*")) == []

    def test_a_damaged_lease_of_a_living_pod_stays(self, world: Any) -> None:
        pod = world.pod()
        added(world, "c1", pod)
        (world.leases / "net/10.77.0.2").write_bytes(b"")
        assert self.gc(world, "c1").status == 0
        assert (world.leases / "net/10.77.0.2").exists()

    def test_what_is_being_worked_on_is_left_alone(self, world: Any) -> None:
        added(world, "c1", world.pod())
        with Records(world.run_dir).busy(Owner("c1", "eth0")):
            assert self.gc(world).status == 0
            assert (world.leases / "net/10.77.0.2").exists()
        assert self.gc(world).status == 0
        assert world.left() == []

    def test_it_goes_on_past_what_fails_and_then_says_so(self, world: Any) -> None:
        pods = [world.pod(), world.pod()]
        for name, pod in zip(("a", "b"), pods, strict=True):
            added(world, name, pod)
        (world.run_dir / "endpoints/a-eth0.json").unlink()
        (world.run_dir / "endpoints/a-eth0.json").mkdir()
        code, message = error(self.gc(world))
        assert code == 5
        assert "GC: some resources could not be freed (1): container a eth0" in message
        assert world.interfaces(pods[1]) == ["lo"]

    def test_without_a_list_only_what_is_certainly_dead_goes(self, world: Any) -> None:
        """libcni calls it so where a runtime gives no list. It says nothing of what is valid."""
        pods = [world.pod(), world.pod()]
        for name, pod in zip(("lives", "dead"), pods, strict=True):
            added(world, name, pod)
        (world.leases / "net/10.77.0.9").write_bytes(b"somebody\r\neth0")
        assert (world.call("GC", "").status, world.call("GC", "").stdout) == (0, b"")
        assert len(Records(world.run_dir).all()[0]) == 2
        netns.delete(world.pods.pop())
        while len([name for name in world.interfaces(world.node) if name.startswith("veth")]) > 1:
            """The kernel takes a namespace apart later."""
        assert world.call("GC", "").status == 0
        assert [record.owner.container_id for record in Records(world.run_dir).all()[0]] == ["lives"]
        assert sorted(path.name for path in (world.leases / "net").glob("1*")) == ["10.77.0.2", "10.77.0.9"]

    def test_the_list_by_its_older_name(self, world: Any) -> None:
        for name in ("keep", "drop"):
            added(world, name, world.pod())
        valid = [{"containerID": "keep", "ifname": "eth0"}]
        assert world.call("GC", "", "", world.conf(**{"cni.dev/attachments": valid})).status == 0
        assert [record.owner.container_id for record in Records(world.run_dir).all()[0]] == ["keep"]
        both = {"cni.dev/attachments": [], "cni.dev/valid-attachments": valid}
        assert world.call("GC", "", "", world.conf(**both)).status == 0
        assert len(Records(world.run_dir).all()[0]) == 1
        assert error(world.call("GC", "", "", world.conf(**{"cni.dev/attachments": {}})))[0] == 7

    def test_the_executable_speaks_it(self, world: Any) -> None:
        pod = world.pod()
        added(world, "c1", pod)
        done = self.gc(world, call=world.execute)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert world.left() == []


class TestStatus:
    def test_all_is_well(self, world: Any) -> None:
        assert world.call("STATUS", "").status == 0
        done = world.execute("STATUS", "")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_an_empty_pool_is_50(self, world: Any) -> None:
        conf = world.conf([[{"subnet": "10.77.0.0/30"}], [{"subnet": "fd77::/64"}]])
        assert world.call("STATUS", "", "", conf).status == 0
        added(world, "c1", world.pod(), ranges=[[{"subnet": "10.77.0.0/30"}], [{"subnet": "fd77::/64"}]])
        code, message = error(world.call("STATUS", "", "", conf))
        assert code == 50
        assert "no free address in 10.77.0.1-10.77.0.2: all 1 are leased" in message

    def test_other_reasons_why_no_add_can_succeed(self, world: Any) -> None:
        assert error(world.call("STATUS", "", "", world.conf(requireAgent=True)))[0] == 50
        assert error(world.call("STATUS", "", "", world.conf(ipam={"type": "nodenet"})))[0] == 50
        shell(world.node, "ip link add nn0 type veth peer nn9")
        assert "nn0 is not a bridge" in error(world.call("STATUS", ""))[1]
        shell(world.node, "ip link del nn0")
        world.leases.write_text("a file where the folder should be")
        assert "leases cannot be written" in error(world.call("STATUS", ""))[1]

    def test_a_pool_that_is_nearly_full_is_counted_exactly(self, world: Any) -> None:
        store = Store(world.leases, "net")
        store.folder.mkdir(parents=True)
        for number in range(1, 256):
            (store.folder / f"10.99.0.{number}").touch()  # another range's
        assert world.call("STATUS", "", "", world.conf([[{"subnet": "10.77.0.0/24"}]])).status == 0


def test_routes_and_results_of_every_version(world: Any) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(world.leases),
        "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
        "routes": [{"dst": "10.9.0.0/16", "mtu": 1300, "priority": 50, "table": 99, "scope": 0}],
    }
    pods = {version: world.pod() for version in ("0.3.1", "0.4.0", "1.0.0", "1.1.0")}
    for version, pod in pods.items():
        body = added(world, f"c{version}", pod, cniVersion=version, ipam=ipam, dns={"nameservers": ["10.0.0.10"]})
        assert body["cniVersion"] == version
        assert [ip.get("version") for ip in body["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])
        assert [ip["interface"] for ip in body["ips"]] == [2, 2]
        assert [entry.get("mtu") for entry in body["interfaces"]] == ([1500] * 3 if version == "1.1.0" else [None] * 3)
        extra = {"mtu": 1300, "priority": 50, "table": 99, "scope": 0} if version == "1.1.0" else {}
        assert body["routes"][0] == {"dst": "10.9.0.0/16", "gw": "10.77.0.1"} | extra
        assert body["dns"] == {"nameservers": ["10.0.0.10"]}
        shown = netns.run(pod, ["ip", "route", "show", "table", "99"], capture_output=True, text=True).stdout
        assert "10.9.0.0/16 via 10.77.0.1 dev eth0 proto static metric 50 mtu 1300" in shown


def test_after_another_plugin_of_the_chain(world: Any) -> None:
    """Our result is added to prevResult: interfaces, addresses with the right index, routes; the DNS stays."""
    pod = world.pod()
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "sandbox": pod, "mac": "02:00:00:00:00:05", "somethingNew": 1}],
        "ips": [{"address": "192.0.2.5/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "example.org"},
    }
    body = added(world, "c1", pod, prevResult=before)
    assert body["interfaces"][0] == before["interfaces"][0]
    assert [entry["name"] for entry in body["interfaces"]][1::2] == ["nn0", "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in body["ips"]] == [
        ("192.0.2.5/24", 0),
        ("10.77.0.2/24", 3),
        ("fd77::2/64", 3),
    ]
    assert body["dns"] == {"domain": "example.org"}
    assert body["routes"][0] == {"dst": "192.0.2.0/24"}
    assert world.call("DEL", "c1", pod, world.conf(prevResult=body)).status == 0
    assert world.left() == []


def test_del_frees_what_prev_result_names_when_nothing_else_is_left(world: Any) -> None:
    pod = world.pod()
    body = added(world, "c1", pod)
    (world.run_dir / "endpoints/c1-eth0.json").unlink()
    with Link(world.node) as node:
        node.delete(body["interfaces"][1]["name"])
    # Another's lease in prevResult stays: the file says whose it is.
    body["ips"].append({"address": "10.77.0.50/24", "interface": 2})
    (world.leases / "net/10.77.0.50").write_bytes(b"other\r\neth0")
    assert world.call("DEL", "c1", pod, world.conf(prevResult=body)).status == 0
    assert [path.name for path in (world.leases / "net").glob("[0-9f]*")] == ["10.77.0.50"]
