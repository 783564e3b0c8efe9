"""The rules of nodenet.kubeproxy in real kernels: every field loads, and a change leaves what a new start makes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from nodenet.kubeproxy import iptables, nftables
from nodenet.kubeproxy.model import Backend, Network, Service, Services
from nodenet.link import netns as namespaces

pytestmark = pytest.mark.kernel

NETWORKS = {
    4: Network(4, "10.128.0.0/9", "10.96.0.0/12", "192.0.2.11", ("192.0.2.11",)),
    6: Network(6, "fd00:10::/32", "fd00:96::/112", "fd00:2::11"),
}
PREFIXES = {4: ("10.128.0.", "10.96.0.", "203.0.113."), 6: ("fd00:10::", "fd00:96::", "fd01::")}
RANGES = {4: ("192.0.2.0/24", "198.51.100.0/24"), 6: ("fd00:2::/64", "fd00:3::/64")}
BACKENDS = ["iptables-nft", "iptables-legacy"]


def table(version: int) -> Services:
    """Services with every field."""
    pods, services, outside = (
        ("10.128.0.", "10.96.0.", "203.0.113.") if version == 4 else ("fd00:10::", "fd00:96::", "fd01::")
    )
    one, two = Backend(f"{pods}1", 9000, here=True), Backend(f"{pods}2", 9000)
    plain = Service("api", f"{services}11", (one, two), "shop", 80, "http")
    external = replace(
        plain,
        name="all",
        cluster_ip=f"{services}12",
        local_backends=(one,),
        external_ips=(f"{outside}5",),
        load_balancer_ips=(f"{outside}6",),
        source_ranges=RANGES[version],
        node_port=30080,
        affinity_seconds=10800,
        external_local=True,
        health_check_node_port=31000,
    )
    nowhere = replace(external, local_backends=(), external_ips=(), load_balancer_ips=())
    return (
        plain,
        external,
        replace(plain, name="dns", cluster_ip=f"{services}13", protocol="udp", affinity_seconds=60),
        replace(plain, name="near", cluster_ip=f"{services}14", internal_local=True, local_backends=(one,)),
        replace(plain, name="far", cluster_ip=f"{services}15", internal_local=True, node_port=30081),
        replace(plain, name="empty", cluster_ip=f"{services}16", backends=(), external_ips=(f"{outside}7",)),
        replace(nowhere, name="gone", cluster_ip=f"{services}17", node_port=30083),
    )


def history(version: int) -> list[Services]:
    """States of the Services, one after the other."""
    full = table(version)
    plain, external = full[:2]
    changed = (
        replace(plain, backends=plain.backends[1:], node_port=30090),
        replace(external, affinity_seconds=0, external_local=False, source_ranges=()),
        replace(full[2], affinity_seconds=90),
        replace(full[5], backends=plain.backends),
    )
    return [(), full, changed, full[1:4], (), full[::-1]]


def run(node: str, command: list[str], given: str = "") -> str:
    done = namespaces.run(node, command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr, given)
    return str(done.stdout)


def saved(node: str, program: str) -> list[str]:
    """Rules and chains of both tables, without counters. Rules of one chain keep their order."""
    found = []
    for name in ("nat", "filter"):
        lines = run(node, [f"{program}-save", "-t", name]).splitlines()
        plain = [re.sub(r"\[\d+:\d+\]", "", line) for line in lines if not line.startswith("#")]
        found += sorted(plain, key=lambda line: line.split()[:2] if line.startswith("-A") else [line])
    return found


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables(two: tuple[str, str], backend: str, version: int) -> None:
    program = backend if version == 4 else backend.replace("ip", "ip6", 1)
    node, fresh = two
    restore = [f"{program}-restore", "--noflush", "--counters", "-w", "5"]
    run(node, restore, iptables.jumps(NETWORKS[version]))
    states = history(version)
    run(node, restore, iptables.render(NETWORKS[version], states[0]))
    for old, new in pairwise(states):
        run(node, restore, iptables.render(NETWORKS[version], new, old))
        run(fresh, [f"{program}-restore"], "*nat\nCOMMIT\n*filter\nCOMMIT\n")
        run(fresh, restore, iptables.jumps(NETWORKS[version]))
        run(fresh, restore, iptables.render(NETWORKS[version], new))
        assert saved(node, program) == saved(fresh, program)
        assert all(service.full_name in "".join(saved(node, program)) for service in new)


def ruleset(node: str) -> list[str]:
    """The ruleset without handles, which differ. Chains in order of names, rules in their own."""
    found = json.loads(run(node, ["nft", "-j", "list", "ruleset"]))["nftables"]
    for entry in found:
        for what in entry.values():
            what.pop("handle", None)
            if "elem" in what:
                what["elem"] = sorted(what["elem"], key=json.dumps)
    lines = [(str(next(iter(e))), str(e.get("rule", {}).get("chain", "")), json.dumps(e)) for e in found]
    rules = [line for line in lines if line[0] == "rule"]
    others = sorted(line[2] for line in lines if line[0] not in ("rule", "metainfo"))
    return [*others, *(line[2] for line in sorted(rules, key=lambda line: line[1]))]


@pytest.mark.parametrize("version", [4, 6])
def test_nftables(two: tuple[str, str], version: int) -> None:
    node, fresh = two
    network = NETWORKS[version]
    states = history(version)
    run(node, ["nft", "-f", "-"], nftables.render(network, states[0]))
    for old, new in pairwise(states):
        run(node, ["nft", "-f", "-"], nftables.render(network, new, old))
        run(node, ["nft", "-f", "-"], nftables.stale_chains(network, new, old))
        run(fresh, ["nft", "flush", "ruleset"])
        run(fresh, ["nft", "-f", "-"], nftables.render(network, new))
        assert ruleset(node) == ruleset(fresh)
        assert all(service.cluster_ip in "".join(ruleset(node)) for service in new)
