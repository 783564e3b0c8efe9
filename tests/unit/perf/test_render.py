"""Each rendering, chain by chain, against golden text and against names that kube-proxy's own documentation shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from perf.render import iptables, ipvs, nftables
from perf.services import Backend, Service, ServiceModel

GOLDEN = Path(__file__).parent / "golden"

WEB = Service(
    "svc1",
    "172.30.0.41",
    (Backend("10.180.0.1", 80),),
    namespace="ns1",
    port_name="p80",
)
SPREAD = Service("api", "10.96.0.11", (Backend("10.128.0.1"), Backend("10.128.0.2"), Backend("10.128.0.3")))
DNS = Service("dns", "10.96.0.12", (Backend("10.128.0.4"),), port=53, port_name="dns", protocol="udp")
EMPTY = Service("empty", "10.96.0.13", ())
MODEL = ServiceModel((WEB, SPREAD, DNS, EMPTY), (("middle", 1),))
CHANGED = MODEL.with_backends("middle", (Backend("10.128.0.1"), Backend("10.128.0.9")))
SHORTER = replace(MODEL, services=(WEB, DNS, replace(EMPTY, backends=(Backend("10.128.0.7"),))))

CASES = {
    "iptables-jumps": iptables.jumps(),
    "iptables-full": iptables.render(MODEL),
    "iptables-endpoint": iptables.render(CHANGED, MODEL),
    "iptables-service-gone": iptables.render(SHORTER, MODEL),
    "nftables-full": nftables.render(MODEL),
    "nftables-endpoint": nftables.render(CHANGED, MODEL),
    "nftables-endpoint-later": nftables.stale_chains(CHANGED, MODEL),
    "nftables-service-gone": nftables.render(SHORTER, MODEL),
    "ipvs-devices": ipvs.devices(MODEL),
    "ipvs-sets": ipvs.sets(MODEL),
    "ipvs-servers": ipvs.virtual_servers(MODEL),
    "ipvs-servers-endpoint": ipvs.virtual_servers(CHANGED, MODEL),
    "ipvs-servers-gone": ipvs.virtual_servers(SHORTER, MODEL),
    "ipvs-devices-gone": ipvs.devices(SHORTER, MODEL),
    "ipvs-sets-gone": ipvs.sets(SHORTER, MODEL),
    "ipvs-rules": ipvs.rules(),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert CASES[name] == (GOLDEN / f"{name}.txt").read_text()


def test_chain_names_are_kube_proxys() -> None:
    """The names that upstream's documentation and tests show for Service ns1/svc1, port p80, endpoint 10.180.0.1:80."""
    backend = WEB.backends[0]
    assert iptables.service_chain(WEB) == "KUBE-SVC-XPGD46QRK7WJZT7O"
    assert iptables.endpoint_chain(WEB, backend) == "KUBE-SEP-SXIVWICOYRO3J4NJ"
    assert nftables.service_chain(WEB) == "service-ULMVA6XW-ns1/svc1/tcp/p80"
    assert nftables.endpoint_chain(WEB, backend) == "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"


def test_every_endpoint_is_equally_likely() -> None:
    """statistic --probability: 1/3 of all, 1/2 of the rest, and what is left."""
    chances = [
        float(line.split("--probability ")[1].split()[0])
        for line in iptables.render(MODEL).splitlines()
        if "--probability" in line
    ]
    assert chances == [pytest.approx(1 / 3), 0.5]


def test_an_unchanged_model_writes_no_service_chain() -> None:
    assert nftables.render(MODEL, MODEL) == ""
    text = iptables.render(MODEL, MODEL)
    assert ":KUBE-SERVICES - [0:0]" in text
    assert ":KUBE-SVC-" not in text
    assert ":KUBE-SEP-" not in text
    assert ipvs.virtual_servers(MODEL, MODEL) == ipvs.sets(MODEL, MODEL) == ipvs.devices(MODEL, MODEL) == ""


def test_one_endpoint_changes_only_its_own_chains() -> None:
    lines = nftables.render(CHANGED, MODEL).splitlines()
    assert lines
    assert all("bench/api/tcp/http" in line for line in lines)


def test_an_address_stays_while_another_port_uses_it() -> None:
    """nft's set of ClusterIPs is of Services, not of ports."""
    other = replace(SPREAD, protocol="udp", port_name="dns")
    both = ServiceModel((SPREAD, other))
    assert "cluster-ips" not in nftables.render(ServiceModel((SPREAD,)), both)
    assert "delete element ip kube-proxy cluster-ips" in nftables.render(ServiceModel(), both)
