"""Each rendering, chain by chain, against golden text and against names that kube-proxy's own documentation shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodenet.kubeproxy import iptables, ipvs, nftables
from nodenet.kubeproxy.model import Backend, Network, Service

GOLDEN = Path(__file__).parent / "golden"

NET = Network(4, "10.128.0.0/9", "10.96.0.0/12", "192.0.2.11")
LOCALHOST = replace(NET, localhost_node_ports=True)
NET6 = Network(6, "fd00:10::/32", "fd00:96::/112", "fd00:2::11", ("fd00:2::11",))
ONE, TWO, THREE = (Backend(f"10.128.0.{number}", 9000, number == 1) for number in (1, 2, 3))
WEB = Service("svc1", "172.30.0.41", (Backend("10.180.0.1", 80),), "ns1", 80, "p80")
SPREAD = Service("api", "10.96.0.11", (ONE, TWO, THREE), "bench", 80, "http")
DNS = Service("dns", "10.96.0.12", (Backend("10.128.0.4", 9000),), "bench", 53, "dns", "udp")
EMPTY = Service("empty", "10.96.0.13", (), "bench", 80, "http")
MODEL = (WEB, SPREAD, DNS, EMPTY)
CHANGED = (WEB, replace(SPREAD, backends=(ONE, Backend("10.128.0.9", 9000))), DNS, EMPTY)
SHORTER = (WEB, DNS, replace(EMPTY, backends=(Backend("10.128.0.7", 9000),)))

# Every field of a Service.
ALL = replace(
    SPREAD,
    local_backends=(ONE,),
    external_ips=("203.0.113.5",),
    load_balancer_ips=("203.0.113.6",),
    source_ranges=("192.0.2.0/24", "198.51.100.0/24"),
    node_port=30080,
    affinity_seconds=10800,
    external_local=True,
    health_check_node_port=31000,
)
ELSEWHERE = replace(ALL, name="far", cluster_ip="10.96.0.20", node_port=30081, local_backends=(), affinity_seconds=0)
FIELDS = (
    ALL,
    replace(ELSEWHERE, source_ranges=(), external_ips=("203.0.113.7",), load_balancer_ips=()),
    replace(SPREAD, name="near", cluster_ip="10.96.0.21", internal_local=True, local_backends=(ONE,)),
    replace(EMPTY, node_port=30082, external_ips=("203.0.113.8",)),
)
SIX = (
    Service("web", "fd00:96::5", (Backend("fd00:10::1", 80, True),), "ns1", 80, "", "tcp", node_port=30080),
    Service("sticky", "fd00:96::6", (Backend("fd00:10::1", 80),), "ns1", 80, affinity_seconds=60),
)

CASES = {
    "iptables-jumps": iptables.jumps(NET),
    "iptables-jumps-localhost": iptables.jumps(LOCALHOST),
    "iptables-localhost": iptables.render(LOCALHOST, MODEL),
    "iptables-full": iptables.render(NET, MODEL),
    "iptables-fields": iptables.render(NET, FIELDS),
    "iptables-six": iptables.render(NET6, SIX),
    "iptables-endpoint": iptables.render(NET, CHANGED, MODEL),
    "iptables-service-gone": iptables.render(NET, SHORTER, MODEL),
    "nftables-full": nftables.render(NET, MODEL),
    "nftables-fields": nftables.render(NET, FIELDS),
    "nftables-six": nftables.render(NET6, SIX),
    "nftables-fields-gone": nftables.render(NET, (SPREAD,), FIELDS),
    "nftables-endpoint": nftables.render(NET, CHANGED, MODEL),
    "nftables-gone-later": nftables.stale_chains(NET, (SPREAD,), FIELDS),
    "nftables-service-gone": nftables.render(NET, SHORTER, MODEL),
    "ipvs-devices": ipvs.devices(NET, MODEL),
    "ipvs-sets": ipvs.sets(NET, MODEL),
    "ipvs-sets-fields": ipvs.sets(NET, FIELDS),
    "ipvs-servers": ipvs.virtual_servers(NET, MODEL),
    "ipvs-servers-fields": ipvs.virtual_servers(NET, FIELDS),
    "ipvs-servers-endpoint": ipvs.virtual_servers(NET, CHANGED, MODEL),
    "ipvs-servers-gone": ipvs.virtual_servers(NET, SHORTER, MODEL),
    "ipvs-devices-gone": ipvs.devices(NET, SHORTER, MODEL),
    "ipvs-sets-gone": ipvs.sets(NET, SHORTER, MODEL),
    "ipvs-rules": ipvs.rules(NET),
    "ipvs-six": ipvs.devices(NET6, SIX) + ipvs.sets(NET6, SIX) + ipvs.virtual_servers(NET6, SIX) + ipvs.rules(NET6),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert CASES[name] == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_file_is_used() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(CASES)


def test_chain_names_are_kube_proxys() -> None:
    """The names that upstream's documentation and tests show for Service ns1/svc1, port p80, endpoint 10.180.0.1:80."""
    backend = WEB.backends[0]
    assert iptables.service_chain(WEB) == "KUBE-SVC-XPGD46QRK7WJZT7O"
    assert iptables.endpoint_chain(WEB, backend) == "KUBE-SEP-SXIVWICOYRO3J4NJ"
    assert nftables.service_chain(WEB) == "service-ULMVA6XW-ns1/svc1/tcp/p80"
    assert nftables.endpoint_chain(WEB, backend) == "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"


def test_names_of_any_length_are_valid_and_different() -> None:
    """nft takes names of at most 255 letters, without colons."""
    long = replace(WEB, name="n" * 63, namespace="s" * 63, port_name="p" * 15)
    ends = [Backend(f"fd00:1111:2222:3333:4444:5555:6666:{number:x}", 65535) for number in (0x7777, 0x7778)]
    names = [nftables.affinity_set(long, end) for end in ends]
    assert names[0] != names[1]
    assert all(len(name) <= 255 and ":" not in name for name in names)
    longest = [nftables.affinity_set(replace(long, name="n" * 150), end) for end in ends]
    assert longest[0] != longest[1]
    assert all(len(name) <= 255 for name in longest)


def test_every_endpoint_is_equally_likely() -> None:
    """statistic --probability: 1/3 of all, 1/2 of the rest, and what is left."""
    chances = [
        float(line.split("--probability ")[1].split()[0])
        for line in iptables.render(NET, MODEL).splitlines()
        if "--probability" in line
    ]
    assert chances == [pytest.approx(1 / 3), 0.5]


def test_an_unchanged_model_writes_no_service_chain() -> None:
    assert nftables.render(NET, MODEL, MODEL) == ""
    text = iptables.render(NET, MODEL, MODEL)
    assert ":KUBE-SERVICES - [0:0]" in text
    assert ":KUBE-SVC-" not in text
    assert ":KUBE-SEP-" not in text
    assert ipvs.virtual_servers(NET, MODEL, MODEL) == ipvs.sets(NET, MODEL, MODEL) == ""
    assert ipvs.devices(NET, MODEL, MODEL) == ""


def test_one_endpoint_changes_only_its_own_chains() -> None:
    lines = nftables.render(NET, CHANGED, MODEL).splitlines()
    assert lines
    assert all("bench/api/tcp/http" in line for line in lines)


def test_an_element_stays_while_another_port_uses_it() -> None:
    """nft's sets of ClusterIPs and of endpoints that call themselves are of all Services."""
    other = replace(SPREAD, name="other", port=81)
    for old, new in (((SPREAD, other), (SPREAD,)), ((SPREAD,), (SPREAD, other))):
        assert "delete element ip kube-proxy cluster-ips" not in nftables.render(NET, new, old)
        assert "delete element ip kube-proxy hairpin" not in nftables.render(NET, new, old)
    gone = nftables.render(NET, (), (SPREAD, other))
    assert "delete element ip kube-proxy cluster-ips" in gone
    assert "delete element ip kube-proxy hairpin-connections" in gone
