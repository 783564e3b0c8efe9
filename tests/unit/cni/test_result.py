"""Results in each version of the specification."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from nodenet.cni.ipam import Lease
from nodenet.cni.result import Result, ResultInterface
from nodenet.cni.routes import PodRoute

RESULT = Result(
    interfaces=(
        ResultInterface("nn0", "02:00:00:00:00:01", mtu=1400),
        ResultInterface("eth0", "0a:58:0a:01:00:02", "/ns", 1400),
    ),
    pod_interface=1,
    leases=(
        Lease(ip_interface("10.1.0.2/24"), ip_address("10.1.0.1"), 0),
        Lease(ip_interface("fd01::2/64"), ip_address("fd01::1"), 1),
    ),
    routes=(PodRoute(ip_network("0.0.0.0/0"), ip_address("10.1.0.1"), mtu=1300, priority=7),),
    dns={"nameservers": ["10.0.0.10"]},
)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_shapes(version: str) -> None:
    body = json.loads(RESULT.to_json(version))
    assert body["cniVersion"] == version
    old, newest = version in ("0.3.1", "0.4.0"), version == "1.1.0"
    assert [ip.get("version") for ip in body["ips"]] == (["4", "6"] if old else [None, None])
    assert [(ip["address"], ip["gateway"], ip["interface"]) for ip in body["ips"]] == [
        ("10.1.0.2/24", "10.1.0.1", 1),
        ("fd01::2/64", "fd01::1", 1),
    ]
    assert [entry.get("mtu") for entry in body["interfaces"]] == ([1400, 1400] if newest else [None, None])
    assert [entry.get("sandbox") for entry in body["interfaces"]] == [None, "/ns"]
    assert body["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"} | ({"mtu": 1300, "priority": 7} if newest else {})]
    assert body["dns"] == {"nameservers": ["10.0.0.10"]}
