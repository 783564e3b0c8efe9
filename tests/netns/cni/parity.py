"""One configuration through our plugin and through the reference's `bridge` and `host-local`: what each leaves behind.

An observation is a dict from facet ("result.ips", "pod.routes"...) to a value without anything that is made up anew
each time: names of veths, MACs, paths. Two plugins are alike in a facet when the values are equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet.cni import alone
from nodenet.link import netns, sysctl

REFERENCE = Path("/usr/lib/cni")
V4, V6 = {"subnet": "10.77.0.0/24"}, {"subnet": "fd77::/64"}
FAMILIES = {"ipv4": [[V4]], "ipv6": [[V6]], "dual": [[V4], [V6]]}


@dataclass(frozen=True)
class Case:
    """A configuration. `prepare` are shell lines run in the node's namespace first, `args` CNI_ARGS; `repeat` makes the
    second ADD the one that is looked at."""

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    ipam: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ("dual",)
    prepare: tuple[str, ...] = ()
    args: str = ""
    repeat: int = 1


GATEWAY = {"isDefaultGateway": True}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.77.0.9/24", "gateway": "10.77.0.254"}, {"address": "fd77::9/64"}],
    "routes": [{"dst": "10.9.0.0/16"}, {"dst": "10.8.0.0/16", "gw": "10.77.0.9"}],
    "dns": {"nameservers": ["10.0.0.10"]},
}
CASES = (
    Case("no keys", families=("ipv4", "ipv6", "dual")),
    Case("isGateway", {"isGateway": True}, families=("ipv4", "ipv6", "dual")),
    Case("isDefaultGateway", GATEWAY, families=("ipv4", "ipv6", "dual")),
    Case("mtu 1400", {**GATEWAY, "mtu": 1400}),
    Case("hairpinMode", {**GATEWAY, "hairpinMode": True}),
    Case("promiscMode", {**GATEWAY, "promiscMode": True}),
    Case("hairpinMode and promiscMode", {**GATEWAY, "hairpinMode": True, "promiscMode": True}),
    Case("ipMasq", {**GATEWAY, "ipMasq": True}, families=("ipv4", "ipv6", "dual")),
    Case("ipMasq, hairpinMode, mtu", {**GATEWAY, "ipMasq": True, "hairpinMode": True, "mtu": 1300}),
    Case("macspoofchk", {**GATEWAY, "macspoofchk": True}, families=("ipv4",)),
    Case("enabledad", {**GATEWAY, "enabledad": True}, families=("ipv6",)),
    Case("vlan 100", {**GATEWAY, "vlan": 100}, families=("ipv4",)),
    Case("no forceAddress, another address there", GATEWAY, families=("ipv4",), prepare=("BRIDGE 10.88.0.1/24",)),
    Case("forceAddress", {**GATEWAY, "forceAddress": True}, families=("ipv4",), prepare=("BRIDGE 10.88.0.1/24",)),
    Case("bridge is no bridge", GATEWAY, prepare=("ip link add nn0 type veth peer name nn9",)),
    Case("dns", {**GATEWAY, "dns": {"nameservers": ["10.0.0.10"], "search": ["svc"]}}, families=("ipv4",)),
    Case("resolvConf", GATEWAY, {"resolvConf": "RESOLV"}, families=("ipv4",)),
    Case("routes", GATEWAY, {"routes": [{"dst": "10.9.0.0/16"}, {"dst": "10.8.0.0/16", "gw": "10.77.0.9"}]}, ("ipv4",)),
    Case("default route by routes", {"isGateway": True}, {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}),
    Case("route of a family without address", GATEWAY, {"routes": [{"dst": "fd99::/64"}]}, ("ipv4",)),
    Case(
        "rangeStart, rangeEnd, gateway",
        GATEWAY,
        {
            "ranges": [
                [
                    {
                        "subnet": "10.77.0.0/24",
                        "rangeStart": "10.77.0.20",
                        "rangeEnd": "10.77.0.30",
                        "gateway": "10.77.0.254",
                    }
                ]
            ]
        },
    ),
    Case("legacy subnet and ranges", GATEWAY, {"subnet": "10.77.0.0/24", "ranges": [[V6]]}),
    Case("two ranges in a set", GATEWAY, {"ranges": [[{"subnet": "10.77.0.0/30"}, {"subnet": "10.77.1.0/24"}]]}),
    Case(
        "two ranges in a set, the second pod",
        {"isGateway": True, "forceAddress": True},
        {"ranges": [[{"subnet": "10.77.0.0/30"}, {"subnet": "10.77.1.0/24"}]]},
        repeat=2,
    ),
    Case("pool exhausted", GATEWAY, {"ranges": [[{"subnet": "10.77.0.0/30"}]]}, repeat=2),
    Case("subnet with host bits", GATEWAY, {"ranges": [[{"subnet": "10.77.0.5/24"}]]}),
    Case("ranges overlap", GATEWAY, {"ranges": [[V4], [{"subnet": "10.77.0.128/25"}]]}),
    Case("CNI_ARGS IP", GATEWAY, families=("ipv4",), args="IgnoreUnknown=1;IP=10.77.0.99"),
    Case("CNI_ARGS IP and MAC", GATEWAY, families=("dual",), args="IgnoreUnknown=1;IP=fd77::99;MAC=02:00:00:00:00:07"),
    Case("CNI_ARGS IP outside", GATEWAY, families=("ipv4",), args="IgnoreUnknown=1;IP=10.78.0.99"),
    Case("args.cni.ips", {**GATEWAY, "args": {"cni": {"ips": ["10.77.0.50"]}}}),
    Case("args.cni.mac", {**GATEWAY, "args": {"cni": {"mac": "02:00:00:00:00:08"}}}),
    Case("runtimeConfig.ips", {**GATEWAY, "runtimeConfig": {"ips": ["10.77.0.51/24", "fd77::51/64"]}}),
    Case("runtimeConfig.mac", {**GATEWAY, "runtimeConfig": {"mac": "02:00:00:00:00:09"}}),
    Case(
        "runtimeConfig.ipRanges",
        {**GATEWAY, "runtimeConfig": {"ipRanges": [[{"subnet": "10.79.0.0/24"}]]}},
        {},
        ("ipv6",),
    ),
    Case("no ipam", {"ipam": {}}, families=("ipv4",)),
    Case("ipam.type static", {**GATEWAY, "ipam": STATIC}, args="IgnoreUnknown=1"),
    Case("ipam.type static, ipMasq", {**GATEWAY, "ipMasq": True, "ipam": STATIC}, args="IgnoreUnknown=1"),
    Case("ipam.type static, isGateway false", {"ipam": {**STATIC, "routes": []}}, args="IgnoreUnknown=1"),
    Case("ipam.type static without addresses", {**GATEWAY, "ipam": {"type": "static"}}, args="IgnoreUnknown=1"),
    Case("ipam.type that is not there", {**GATEWAY, "ipam": {"type": "nntest-none"}}, families=("ipv4",)),
    Case("cniVersion 0.3.1", {**GATEWAY, "cniVersion": "0.3.1"}),
    Case("cniVersion 0.4.0", {**GATEWAY, "cniVersion": "0.4.0"}),
    Case("cniVersion 9.9.9", {**GATEWAY, "cniVersion": "9.9.9"}),
    Case("unknown key", {**GATEWAY, "somethingNew": {"a": 1}}),
    Case("mtu is text", {**GATEWAY, "mtu": "1500"}, families=("ipv4",)),
    Case("the second pod", GATEWAY, repeat=2),
)
# Seconds that a ping may take where an answer is expected, and where none is.
_PATIENT, _BRIEF = 5.0, 0.3


def configuration(case: Case, family: str, data_dir: Path) -> bytes:
    """The plugin's standard input, but for its type."""
    resolv = data_dir.parent / "resolv.conf"
    resolv.write_text("nameserver 10.0.0.10\nsearch svc.local\n")
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(data_dir)}
    ipam |= case.ipam if {"ranges", "subnet"} & set(case.ipam) else {"ranges": FAMILIES[family], **case.ipam}
    if ipam.get("resolvConf"):
        ipam["resolvConf"] = str(resolv)
    return json.dumps(
        {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "nn0", "ipam": ipam} | dict(case.keys)
    ).encode()


class Side:
    """One plugin on one node of its own."""

    def __init__(self, world: Any, data_dir: Path, reference: bool) -> None:
        self.world, self.data_dir, self.reference = world, data_dir, reference
        data_dir.parent.mkdir(parents=True, exist_ok=True)

    def call(self, verb: str, container: str, pod: str, conf: bytes, args: str) -> tuple[int, Any]:
        """(exit status, what was printed as JSON)."""
        if self.reference:
            env = self.world.env(verb, container, pod) | {
                "CNI_ARGS": args,
                "CNI_PATH": str(REFERENCE),
                "PATH": "/usr/sbin:/usr/bin",
            }
            done = netns.run(
                self.world.node, [REFERENCE / "bridge"], env=env, input=conf, capture_output=True, timeout=30
            )
            status, out = done.returncode, done.stdout
        else:
            body = json.loads(conf) | {"agentSocket": str(self.world.run_dir / "cni.sock")}
            env = self.world.env(verb, container, pod, args) | {"CNI_PATH": str(REFERENCE)}
            reply = netns.call(self.world.node, alone.run, env, json.dumps(body).encode())
            status, out = reply.status, reply.stdout
        return status, json.loads(out) if out else None

    def observe(self, case: Case, family: str, ping: Any) -> dict[str, Any]:
        """ADD (as often as the case says), look, DEL, look again."""
        node = self.world.node
        # Duplicate detection takes the reference's gateway out of use for up to two seconds, now and then: not here.
        for key in ("all", "default"):
            sysctl.write(f"ipv6/conf/{key}/accept_dad", 0, node)
        self._outside()
        for line in case.prepare:
            if line.startswith("BRIDGE "):
                self._shell(f"ip link add nn0 type bridge; ip addr add {line[7:]} dev nn0; ip link set nn0 up")
            else:
                self._shell(line)
        conf = configuration(case, family, self.data_dir)
        pods, status, printed = [], 0, None
        for number in range(case.repeat):
            pods.append(self.world.pod())
            status, printed = self.call("ADD", f"c{number}", pods[-1], conf, case.args)
        found: dict[str, Any] = {"ADD": f"error {printed['code']}" if status else "done"}
        if status == 0:
            found |= self._result(printed) | self._kernel(pods[-1], printed)
            found |= self._traffic(case, printed, pods[-1], ping)
        found["leases"] = self._leases()
        for number in range(case.repeat):
            status, _ = self.call("DEL", f"c{number}", pods[number], conf, case.args)
            found["DEL"] = status
        found["left.leases"] = [name for name in self._leases() if not name.startswith("last_reserved")]
        found["left.veths"] = [name for name in self.world.interfaces(node) if name.startswith("veth")]
        tables = netns.run(node, ["nft", "list", "ruleset"], capture_output=True, text=True).stdout
        found["left.rules"] = sorted(set(re.findall(r"masquerade|drop", tables)))
        found["left.pod"] = [self.world.interfaces(pod) for pod in pods]
        return found

    def _result(self, body: Mapping[str, Any]) -> dict[str, Any]:
        names = [re.sub(r"^veth\w+$", "veth*", entry["name"]) for entry in body.get("interfaces", ())]
        return {
            "result.cniVersion": body["cniVersion"],
            "result.interfaces": [
                (name, bool(entry.get("sandbox")))
                for name, entry in zip(names, body.get("interfaces", ()), strict=True)
            ],
            "result.ips": body.get("ips") or [],
            "result.routes": body.get("routes") or [],
            "result.dns": body.get("dns") or {},
        }

    def _kernel(self, pod: str, body: Mapping[str, Any]) -> dict[str, Any]:
        node = self.world.node
        (eth0,) = self._json(pod, "ip", "-d", "-j", "addr", "show", "eth0")
        (bridge,) = self._json(node, "ip", "-d", "-j", "addr", "show", "nn0")
        host = body["interfaces"][1]["name"]
        (port,) = self._json(node, "ip", "-d", "-j", "link", "show", host)
        slave = port.get("linkinfo", {}).get("info_slave_data", {})
        routes = [
            (route["dst"], route.get("gateway", ""), route.get("metric", 0))
            for flag in ("-4", "-6")
            for route in self._json(pod, "ip", flag, "-j", "route")
            if not route["dst"].startswith(("fe80", "ff00"))
        ]
        asked = re.fullmatch("02:00:00:00:00:0.", eth0["address"])
        return {
            "pod.addresses": _addresses(eth0),
            "pod.routes": sorted(routes),
            "pod.mtu": eth0["mtu"],
            "pod.up": "UP" in eth0["flags"],
            "pod.mac": eth0["address"] if asked else "chosen",
            "pod.accept_dad": self._sysctl(pod, "ipv6/conf/eth0/accept_dad"),
            "pod.accept_ra": self._sysctl(pod, "ipv6/conf/eth0/accept_ra"),
            "node.bridge": (_addresses(bridge), bridge["mtu"], "PROMISC" in bridge["flags"], "UP" in bridge["flags"]),
            "node.bridge accept_ra": self._sysctl(node, "ipv6/conf/nn0/accept_ra"),
            "node.port": {key: slave.get(key) for key in ("state", "hairpin", "isolated", "guard", "learning")},
            "node.port link-local": any(
                a["scope"] == "link" for a in self._json(node, "ip", "-j", "addr", "show", host)[0]["addr_info"]
            ),
            "node.port mtu": port["mtu"],
            "node.forwarding": (self._sysctl(node, "ipv4/ip_forward"), self._sysctl(node, "ipv6/conf/all/forwarding")),
        }

    def _traffic(self, case: Case, body: Mapping[str, Any], pod: str, ping: Any) -> dict[str, Any]:
        gateway = _PATIENT if case.keys.get("isGateway") or case.keys.get("isDefaultGateway") else _BRIEF
        outside = _PATIENT if case.keys.get("ipMasq") else _BRIEF
        targets = {}
        for ip in body.get("ips") or ():
            version = ip_address(ip["address"].partition("/")[0]).version
            if ip.get("gateway"):
                targets[f"traffic.gateway {version}"] = (ip["gateway"], gateway)
            targets[f"traffic.outside {version}"] = ("192.0.2.2" if version == 4 else "2001:db8::2", outside)
        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(targets, pool.map(lambda target: ping(pod, *target), targets.values()), strict=True))
        netns.run(pod, ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"], check=True)
        for ip in body.get("ips") or ():
            if ":" not in ip["address"] and ip.get("gateway"):
                patience = _BRIEF if case.keys.get("macspoofchk") else gateway
                found["traffic.another MAC"] = ping(pod, ip["gateway"], patience)
        return found

    def _outside(self) -> None:
        """A machine beyond the node that has no route to pods."""
        path = self.world.pod()
        self._shell(
            f"ip link add up0 type veth peer name eth0 netns {Path(path).name}; ip addr add 192.0.2.1/24 dev up0; "
            "ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up"
        )
        for line in ("addr add 192.0.2.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad", "link set eth0 up"):
            netns.run(path, ["ip", *line.split()], check=True)

    def _leases(self) -> list[str]:
        folder = self.data_dir / "net"
        if not folder.is_dir():
            return []
        shown = []
        for path in sorted(folder.iterdir()):
            if path.name == "lock" or path.name.startswith("."):
                continue
            text = path.read_text().replace("\r\n", " ")
            shown.append(f"{path.name}: {text}")
        return shown

    def _sysctl(self, where: Any, key: str) -> str:
        return netns.call(where, Path("/proc/sys/net", key).read_text).strip()

    def _json(self, where: Any, *argv: str) -> Any:
        done = netns.run(where, argv, capture_output=True, text=True, check=True)
        return json.loads(done.stdout or "[]")

    def _shell(self, line: str) -> None:
        done = netns.run(self.world.node, ["sh", "-ec", line], capture_output=True)
        assert done.returncode == 0, done.stderr


def _addresses(link: Mapping[str, Any]) -> list[str]:
    return sorted(f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] != "link")


def differences(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Facets in which the two differ: (ours, the reference's)."""
    facets = dict.fromkeys((*ours, *reference))
    return {
        facet: (ours.get(facet), reference.get(facet)) for facet in facets if ours.get(facet) != reference.get(facet)
    }
