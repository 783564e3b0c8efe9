"""Runs in a virtual machine: checks pods in VLANs of one bridge, trunks and isolated ports with traffic. Prints one
JSON object.

tests/e2e/test_vlans.py runs it as `python -m perf.vlan_check`, because the kernel of the machine may lack
CONFIG_BRIDGE_VLAN_FILTERING. Two namespaces represent nodes: one for our plugin, one for the reference plugin if it is
installed. Both have the same pods and checks, and their `bridge vlan show` is compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet.cni import alone
from nodenet.link import netns
from nodenet.link.handle import Link

REFERENCE = Path("/usr/lib/cni/bridge")
BRIDGE = "br0"
# Seconds to wait for an answer, which takes milliseconds, and to be sure that a blocked packet does not arrive.
ANSWER, SILENCE = 5.0, 0.5
ETH_P_ARP = 0x0806

# Pods: name -> keys of their configuration. All are in the same subnet, so that only the VLAN can separate them.
PODS: dict[str, dict[str, Any]] = {
    "ten-a": {"vlan": 10},
    "ten-b": {"vlan": 10},
    "twenty": {"vlan": 20},
    "plain": {},
}
OURS_ONLY: dict[str, dict[str, Any]] = {
    "strict": {"vlan": 10, "preserveDefaultVlan": False},
    "trunk": {"vlan": 20, "vlanTrunk": [{"id": 10}, {"minID": 100, "maxID": 102}], "preserveDefaultVlan": False},
    "alone-a": {"portIsolation": True},
    "alone-b": {"portIsolation": True},
}
GATEWAYS: dict[str, dict[str, Any]] = {
    "gate-30": {"vlan": 30, "isDefaultGateway": True},
    "gate-40": {"vlan": 40, "isDefaultGateway": True},
}


@dataclass(slots=True)
class Node:
    """A namespace that represents a node, and the addresses of its pods."""

    name: str
    run: Callable[[Mapping[str, str], bytes], bytes]
    addresses: dict[str, list[str]] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def pod(self, name: str) -> str:
        return f"{self.name}-{name}"

    def call(self, verb: str, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        number = [*PODS, *OURS_ONLY, *GATEWAYS].index(name) + 10
        vlan = keys.get("vlan", 1) if name in GATEWAYS else 1
        ranges = [
            [{"subnet": f"10.{vlan}.0.0/24", "rangeStart": f"10.{vlan}.0.{number}"}],
            [{"subnet": f"fd{vlan:02}::/64", "rangeStart": f"fd{vlan:02}::{number}"}],
        ]
        conf = {
            "cniVersion": "1.0.0",
            "name": f"net-{name}",
            "type": "bridge",
            "bridge": BRIDGE,
            "agentSocket": f"/run/{self.name}/cni.sock",
            "ipam": {"type": "host-local", "dataDir": f"/run/{self.name}-leases", "ranges": ranges},
        }
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": str(netns.path_of(self.pod(name))),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(REFERENCE.parent),
        }
        out = self.run(environment, json.dumps(conf | dict(keys)).encode())
        return json.loads(out) if out else {}

    def add(self, name: str, keys: Mapping[str, Any]) -> None:
        netns.create(self.pod(name))
        result = self.call("ADD", name, keys)
        if "ips" not in result:
            raise AssertionError(f"ADD of {name}: {result}")
        self.results[name] = result
        self.addresses[name] = [entry["address"].partition("/")[0] for entry in result["ips"]]
        # The reference plugin also lists the gateway's interface in the VLAN, `br0.30`.
        ends = [e["name"] for e in result["interfaces"] if not e.get("sandbox") and not e["name"].startswith(BRIDGE)]
        (self.ports[name],) = ends

    def vlans(self) -> dict[str, Any]:
        """`bridge -j vlan show` by pod: [number, flags...] for each VLAN of its port."""
        done = netns.run(self.name, ["bridge", "-j", "vlan", "show"], capture_output=True, text=True, check=True)
        shown = {entry["ifname"]: entry["vlans"] for entry in json.loads(done.stdout)}
        return {
            name: [
                [entry["vlan"], entry.get("vlanEnd", entry["vlan"]), *sorted(entry.get("flags", ()))] for entry in found
            ]
            for name, port in self.ports.items()
            if (found := shown.get(port)) is not None
        }


def ours(node: str) -> Callable[[Mapping[str, str], bytes], bytes]:
    return lambda environment, stdin: netns.call(node, alone.run, dict(environment), stdin).stdout


def reference(node: str) -> Callable[[Mapping[str, str], bytes], bytes]:
    def run(environment: Mapping[str, str], stdin: bytes) -> bytes:
        done = netns.run(
            node, [REFERENCE], env=os.environ | dict(environment), input=stdin, capture_output=True, timeout=60
        )
        return bytes(done.stdout)

    return run


def ping(source: str, target: str, seconds: float, ifname: str = "") -> bool:
    """Send an ICMP echo request every 100 ms from a namespace. Returns True if an answer arrives in time."""
    v6 = ip_address(target).version == 6
    family, protocol = (socket.AF_INET6, 58) if v6 else (socket.AF_INET, 1)
    kind, answer = (128, 129) if v6 else (8, 0)
    packet = struct.pack("!BBHHH", kind, 0, 0, 0x6E6E, 1)
    total = sum(struct.unpack("!4H", packet))
    packet = packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]
    with netns.open_socket(source, family, socket.SOCK_RAW, protocol) as sock:
        if ifname:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode())
        sock.settimeout(0.1)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sock.sendto(packet, (target, 0))
                data, peer = sock.recvfrom(2048)
                if data[0 if v6 else 20] == answer and peer[0] == target:
                    return True
    return False


@contextlib.contextmanager
def listening(where: str) -> Iterator[socket.socket]:
    """A packet socket on a pod's eth0 that receives only ARP."""
    with netns.open_socket(where, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as sock:
        sock.bind(("eth0", ETH_P_ARP))
        sock.settimeout(SILENCE)
        yield sock


def questions(node: Node) -> Iterator[tuple[str, bool, bool]]:
    """Yield (what, expected, found) for the pods that both plugins support."""
    here = node.addresses
    for source, target, wanted in (
        ("ten-a", "ten-b", True),
        ("ten-b", "ten-a", True),
        ("ten-a", "twenty", False),
        ("twenty", "ten-b", False),
        ("plain", "ten-a", False),
        ("ten-a", "plain", False),
    ):
        for address in here[target]:
            found = ping(node.pod(source), address, ANSWER if wanted else SILENCE)
            yield f"{source} -> {target} ({'IPv6' if ':' in address else 'IPv4'})", wanted, found
    for name, heard in overhear(node, "10.1.0.250", "ten-a", "twenty").items():
        yield f"frames of VLAN 1 arrive at {name}, which kept VLAN 1", True, heard


def overhear(node: Node, asked: str, *names: str) -> dict[str, bool]:
    """Whether a broadcast of the pod without a VLAN reaches other pods. The broadcast is an ARP request for an unused
    address. `asked` must be a new address each time, because the kernel delays a second request for the same one."""
    heard = {}
    with contextlib.ExitStack() as stack:
        socks = {name: stack.enter_context(listening(node.pod(name))) for name in names}
        ping(node.pod("plain"), asked, 0.15)
        for name, sock in socks.items():
            heard[name] = False
            with contextlib.suppress(TimeoutError):
                heard[name] = bool(sock.recv(100))
    return heard


def own_questions(node: Node) -> Iterator[tuple[str, bool, bool]]:
    """Checks of features that the reference plugin of Debian 12 does not have: preserveDefaultVlan, vlanTrunk,
    portIsolation."""
    for source, target, wanted in (
        ("strict", "ten-a", True),
        ("trunk", "twenty", True),
        ("trunk", "ten-a", False),
        ("alone-a", "alone-b", False),
        ("alone-a", "plain", True),
        ("plain", "alone-b", True),
    ):
        found = ping(node.pod(source), node.addresses[target][0], ANSWER if wanted else SILENCE)
        yield f"{source} -> {target}", wanted, found
    heard = overhear(node, "10.1.0.251", "ten-a", "strict")
    yield (
        "frames of VLAN 1 arrive at ten-a, and not at strict, which left VLAN 1",
        True,
        heard["ten-a"] and not heard["strict"],
    )
    script = (
        "ip link add link eth0 name eth0.10 type vlan id 10 && ip link set eth0.10 up && "
        "ip address add 10.1.0.200/24 dev eth0.10"
    )
    netns.run(node.pod("trunk"), ["sh", "-c", script], check=True)
    for target, wanted in (("ten-a", True), ("twenty", False)):
        found = ping(node.pod("trunk"), node.addresses[target][0], ANSWER if wanted else SILENCE, "eth0.10")
        yield f"trunk by its VLAN 10 -> {target}", wanted, found


def gateway_questions(node: Node) -> Iterator[tuple[str, bool, bool]]:
    """Check that the node is the gateway of a VLAN and routes between VLANs."""
    for name, other in (("gate-30", "gate-40"), ("gate-40", "gate-30")):
        for address in node.addresses[name]:
            gateway = address.rpartition(":")[0] + ":1" if ":" in address else address.rpartition(".")[0] + ".1"
            yield f"{name} -> its gateway {gateway}", True, ping(node.pod(name), gateway, ANSWER)
        for address in node.addresses[other]:
            yield f"{name} -> {other} by the node ({address})", True, ping(node.pod(name), address, ANSWER)
    yield "the node -> gate-30", True, ping(node.name, node.addresses["gate-30"][0], ANSWER)


def checked(node: Node, pods: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Check that CHECK succeeds for every pod, and that it reports a VLAN that was removed."""

    def found(name: str) -> str:
        answer = node.call("CHECK", name, {**pods[name], "prevResult": node.results[name]})
        return f"{answer.get('msg', '')} {answer.get('details', '')}".strip()

    checks = {name: found(name) for name in pods}
    netns.run(node.name, ["bridge", "vlan", "del", "dev", node.ports["strict"], "vid", "10"], check=True)
    lost = found("strict")
    checks["strict without its VLAN"] = "" if "is not in VLAN 10" in lost else f"CHECK says {lost!r}"
    return checks


def removed(node: Node, name: str, keys: Mapping[str, Any]) -> str:
    """Call DEL. Returns what remains, or ""."""
    if answer := node.call("DEL", name, keys):
        return f"DEL: {answer}"
    with Link(netns.path_of(node.name)) as link:
        return "its port is left" if link.get(node.ports[name]) else ""


def check() -> dict[str, Any]:
    """{"checks": {part: {check: "" or the problem}}, "vlans": {plugin: {pod: [...]}}}"""
    checks: dict[str, dict[str, str]] = {}
    shown: dict[str, Any] = {}
    nodes = [Node("ours", ours("ours"))]
    if REFERENCE.exists():
        nodes.append(Node("reference", reference("reference")))
    for node in nodes:
        netns.create(node.name)
        pods = PODS | GATEWAYS | (OURS_ONLY if node.name == "ours" else {})
        for name, keys in pods.items():
            node.add(name, keys)
        parts = [questions(node), gateway_questions(node), *([own_questions(node)] if node.name == "ours" else [])]
        checks[node.name] = {
            what: "" if wanted == found else f"expected {wanted}, got {found}"
            for part in parts
            for what, wanted, found in part
        }
        shown[node.name] = node.vlans()
        if node.name == "ours":
            checks["CHECK"] = checked(node, pods)
            checks["left"] = {name: removed(node, name, keys) for name, keys in pods.items()}
    if len(nodes) > 1:
        checks["bridge vlan show"] = {
            name: "" if shown["ours"].get(name) == vlans else f"ours {shown['ours'].get(name)}, the reference's {vlans}"
            for name, vlans in shown["reference"].items()
        }
    return {"release": os.uname().release, "checks": checks, "vlans": shown}


def main() -> int:
    try:
        answer = check()
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        traceback.print_exc(file=sys.stderr)
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
