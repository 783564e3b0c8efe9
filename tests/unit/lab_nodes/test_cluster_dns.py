"""The lab's DNS: its objects, and each pod's resolver as dnsPolicy and dnsConfig say."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.errors import BadInputError
from nodenet.lab import cluster_dns, layout
from nodenet.lab.layout import IPFamily
from tests.unit.lab_nodes import objects as make

NODE = "# made by hand\nsearch old.example\nsearch corp.example\nnameserver 192.0.2.1\noptions timeout:1 rotate\n"
CLUSTER = ["10.96.0.10"]


def pod(**spec: Any) -> dict[str, Any]:
    found = make.pod("web-0", "shop", ips=["10.244.1.2"])
    found["spec"] |= spec
    return found


def lines(found: dict[str, Any]) -> list[str]:
    return cluster_dns.resolv_conf(found, CLUSTER, NODE).splitlines()


FIRST = ["nameserver 10.96.0.10", "search shop.svc.cluster.local svc.cluster.local cluster.local", "options ndots:5"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, FIRST),
        ({"dnsPolicy": "ClusterFirst"}, FIRST),
        ({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": True}, FIRST),
        ({"dnsPolicy": "ClusterFirst", "hostNetwork": True}, NODE.splitlines()),
        ({"dnsPolicy": "Default"}, NODE.splitlines()),
        (
            {"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "timeout", "value": "9"}]}},
            ["nameserver 192.0.2.1", "search corp.example", "options timeout:9 rotate"],
        ),
        (
            {
                "dnsPolicy": "None",
                "dnsConfig": {
                    "nameservers": ["192.0.2.9"],
                    "searches": ["a.example"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                },
            },
            ["nameserver 192.0.2.9", "search a.example", "options ndots:2 edns0"],
        ),
        (
            {
                "dnsConfig": {
                    "nameservers": ["192.0.2.9", "10.96.0.10"],
                    "searches": ["a.example"],
                    "options": [{"name": "ndots", "value": "2"}],
                }
            },
            [
                "nameserver 10.96.0.10",
                "nameserver 192.0.2.9",
                "search shop.svc.cluster.local svc.cluster.local cluster.local a.example",
                "options ndots:2",
            ],
        ),
    ],
)
def test_resolv_conf(spec: dict[str, Any], expected: list[str]) -> None:
    assert lines(pod(**spec)) == expected


def test_the_resolver_reads_three_servers_at_most() -> None:
    found = lines(pod(dnsConfig={"nameservers": [f"192.0.2.{number}" for number in range(5)]}))
    assert len([line for line in found if line.startswith("nameserver")]) == 3


def test_names_come_from_files_and_dns_only() -> None:
    """systemd-resolved and mDNS of this machine would answer from outside of the pod's network."""
    text = "passwd: files systemd\nhosts: files resolve [!UNAVAIL=return] mdns4_minimal dns\n"
    assert cluster_dns.name_services(text) == "passwd: files systemd\nhosts: files dns\n"
    assert cluster_dns.name_services("") == "hosts: files dns\n"


def test_hosts_file_is_the_kubelets() -> None:
    found = pod(hostname="web-0", subdomain="web", hostAliases=[{"ip": "192.0.2.7", "hostnames": ["old", "older"]}])
    assert cluster_dns.hosts_file(found).splitlines()[2:] == [
        "10.244.1.2 web-0.web.shop.svc.cluster.local web-0",
        "192.0.2.7 old older",
    ]
    assert cluster_dns.hosts_file(pod()).splitlines()[2:] == ["10.244.1.2 web-0"]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (IPFamily.IPV4, ["10.96.0.10"]),
        (IPFamily.IPV6, ["fd00:10:96::a"]),
        (IPFamily.DUAL, ["10.96.0.10", "fd00:10:96::a"]),
    ],
)
def test_the_service_has_the_tenth_address(family: IPFamily, expected: list[str]) -> None:
    plan = layout.plan("x", 1, family)
    deployment, service = cluster_dns.objects(plan)
    assert service["spec"]["clusterIPs"] == expected
    assert cluster_dns.servers([make.service("web", "shop"), service]) == expected
    template = deployment["spec"]["template"]
    assert cluster_dns.serves({"metadata": {**template["metadata"], "namespace": "kube-system"}})
    assert not cluster_dns.serves({"metadata": {**template["metadata"], "namespace": "shop"}})
    # Its own questions for names outside must not come back to it.
    assert template["spec"]["dnsPolicy"] == "Default"


def test_without_the_service_there_are_no_servers() -> None:
    assert cluster_dns.servers([make.service("kube-dns", "shop")]) == []


def test_the_upstream_server_is_an_address() -> None:
    plan = layout.plan("x", 1, IPFamily.DUAL)
    assert cluster_dns.check_upstream("", plan) == ""
    assert cluster_dns.check_upstream("fd00:0::1", plan) == "fd00::1"
    with pytest.raises(BadInputError, match=r"--dns-upstream: expected an IP address, got 'dns.example'"):
        cluster_dns.check_upstream("dns.example", plan)
    for own in ("10.96.0.10", "fd00:10:96::a"):
        with pytest.raises(BadInputError, match="which would ask itself"):
            cluster_dns.check_upstream(own, plan)


def test_the_program_gets_the_upstream_server(tmp_path: Any) -> None:
    assert "--upstream" not in cluster_dns.program(tmp_path, "")
    assert cluster_dns.program(tmp_path, "10.96.0.99")[-2:] == ["--upstream", "10.96.0.99"]
