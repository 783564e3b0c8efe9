"""Cluster addresses and node ports of Services."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.lab.apiserver.addresses import ServiceAddresses
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import ApiError

Obj = dict[str, Any]
DUAL = ("10.96.0.0/16", "fd00:10:96::/112")


def service(name: str, **spec: Any) -> Obj:
    body = {"selector": {"app": name}, "ports": [{"port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


async def spec_of(cidrs: tuple[str, ...], **spec: Any) -> Obj:
    made: Obj = (await ApiServer(cidrs).client.create(service("web", **spec)))["spec"]
    return made


async def test_a_plain_service_gets_one_address_of_the_primary_family() -> None:
    spec = await spec_of(DUAL)
    assert spec["ipFamilies"] == ["IPv4"]
    assert spec["ipFamilyPolicy"] == "SingleStack"
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert ip_address(spec["clusterIP"]) in ip_network(DUAL[0])
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]


async def test_the_first_network_is_the_primary_one() -> None:
    assert (await spec_of(DUAL[::-1]))["ipFamilies"] == ["IPv6"]


@pytest.mark.parametrize("wanted", ["PreferDualStack", "RequireDualStack"])
async def test_dual_stack(wanted: str) -> None:
    spec = await spec_of(DUAL, ipFamilyPolicy=wanted)
    assert spec["ipFamilies"] == ["IPv4", "IPv6"]
    assert [ip_address(ip).version for ip in spec["clusterIPs"]] == [4, 6]


async def test_prefer_dual_stack_is_content_with_one_family() -> None:
    assert (await spec_of(DUAL[:1], ipFamilyPolicy="PreferDualStack"))["ipFamilies"] == ["IPv4"]


async def test_given_addresses_are_kept_and_not_given_twice() -> None:
    client = ApiServer(DUAL).client
    made = await client.create(service("dns", clusterIPs=["10.96.0.10", "fd00:10:96::a"]))
    assert made["spec"]["clusterIP"] == "10.96.0.10"
    assert made["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    with pytest.raises(ApiError, match="already allocated to default/dns"):
        await client.create(service("other", clusterIP="10.96.0.10"))
    await client.delete("Service", "dns")
    assert (await client.create(service("other", clusterIP="10.96.0.10")))["spec"]["clusterIP"] == "10.96.0.10"


async def test_headless_and_external_name_have_no_address() -> None:
    assert (await spec_of(DUAL, clusterIP="None"))["clusterIPs"] == ["None"]
    named = await spec_of(DUAL, type="ExternalName", externalName="example.com")
    assert not {"clusterIP", "clusterIPs", "ipFamilies"} & named.keys()


async def test_a_full_network_says_so() -> None:
    client = ApiServer(("10.96.0.0/29",)).client
    for number in range(5):
        await client.create(service(f"s{number}"))
    with pytest.raises(ApiError, match=r"range 10\.96\.0\.0/29 is full"):
        await client.create(service("more"))


async def test_replace_without_addresses_keeps_them() -> None:
    client = ApiServer(DUAL).client
    made = await client.create(service("web", type="NodePort"))
    done = await client.update(service("web", type="NodePort", sessionAffinity="ClientIP"))
    for key in ("clusterIP", "clusterIPs", "ports", "ipFamilies"):
        assert done["spec"][key] == made["spec"][key]
    assert done["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


async def test_a_service_grows_to_two_families_and_shrinks_again() -> None:
    client = ApiServer(DUAL).client
    made = await client.create(service("web"))
    both = await client.patch("Service", "web", {"spec": {"ipFamilyPolicy": "PreferDualStack"}})
    assert both["spec"]["clusterIPs"][0] == made["spec"]["clusterIP"]
    assert both["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    patch = {"spec": {"ipFamilyPolicy": "SingleStack"}}
    assert (await client.patch("Service", "web", patch))["spec"]["clusterIPs"] == [made["spec"]["clusterIP"]]


async def test_node_ports() -> None:
    client = ApiServer(DUAL).client
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30081}]
    made = await client.create(service("web", type="LoadBalancer", ports=ports, externalTrafficPolicy="Local"))
    found = [port["nodePort"] for port in made["spec"]["ports"]] + [made["spec"]["healthCheckNodePort"]]
    assert len(set(found)) == 3
    assert all(30000 <= port <= 32767 for port in found)
    with pytest.raises(ApiError, match="already allocated to default/web"):
        await client.create(service("other", type="NodePort", ports=[{"port": 80, "nodePort": 30081}]))
    plain = await client.patch("Service", "web", {"spec": {"type": "ClusterIP"}})
    assert "nodePort" not in plain["spec"]["ports"][0]
    assert not {"healthCheckNodePort", "externalTrafficPolicy"} & plain["spec"].keys()
    named = await client.patch("Service", "web", {"spec": {"type": "ExternalName", "externalName": "example.com"}})
    assert "clusterIP" not in named["spec"]


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60))
def test_no_address_is_ever_held_twice(steps: list[tuple[int, bool]]) -> None:
    addresses = ServiceAddresses(("10.0.0.0/28", "fd00::/124"))
    held: dict[int, Obj] = {}
    for number, add in steps:
        ref = ("default", f"s{number}")
        if add and number not in held:
            port = {"port": 80, "protocol": "TCP"}
            spec: Obj = {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "ports": [port]}
            if not addresses.assign(ref, spec, None):
                addresses.record(ref, spec)
                held[number] = spec
        elif not add and number in held:
            addresses.record(ref, None)
            del held[number]
    ips = [ip for spec in held.values() for ip in spec["clusterIPs"]]
    assert len(ips) == len(set(ips))
    ports = [spec["ports"][0]["nodePort"] for spec in held.values()]
    assert len(ports) == len(set(ports))
