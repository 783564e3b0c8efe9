"""What is masqueraded, from Nodes, configuration and the ip-masq-agent's file."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from nodenet.agent.ip_masq_file import IpMasqFile, read_file
from nodenet.agent.masquerade import Masquerade, plans
from nodenet.config import Config, parse
from nodenet.errors import BadInputError
from nodenet.link.egress import _intervals
from nodenet.model import Node, ObjectRef
from nodenet.store import Snapshot


def snapshot(*nodes: Node) -> Snapshot:
    return Snapshot(nodes=MappingProxyType({ObjectRef("", node.name): node for node in nodes}))


ONE = Node(
    "n1", (ip_address("192.168.0.1"), ip_address("fd00::1")), (ip_network("10.1.0.0/24"), ip_network("fd01::/64"))
)
TWO = Node("n2", (ip_address("192.168.0.2"),), (ip_network("10.2.0.0/24"), ip_network("fd02::/64")))
CONFIG = Config("n1", masquerade_exclude=(ip_network("172.16.0.0/12"),))


def texts(networks: Any) -> list[str]:
    return list(map(str, networks))


def test_pods_of_this_node_to_anything_but_pods_nodes_and_exclusions() -> None:
    found = plans(snapshot(ONE, TWO), CONFIG, IpMasqFile())
    assert texts(found[4].sources) == ["10.1.0.0/24"]
    assert texts(found[4].excluded) == [
        "10.1.0.0/24",
        "10.2.0.0/24",
        "172.16.0.0/12",
        "192.168.0.1/32",
        "192.168.0.2/32",
        "224.0.0.0/4",
    ]
    assert texts(found[6].excluded) == ["fd00::1/128", "fd01::/64", "fd02::/64", "fe80::/10", "ff00::/8"]
    assert (found[4].low, found[4].high) == (32768, 49151)


def test_only_the_versions_that_are_asked_for_and_that_the_node_has() -> None:
    assert list(plans(snapshot(ONE), CONFIG, IpMasqFile(), (6,))) == [6]
    assert plans(snapshot(TWO), CONFIG, IpMasqFile()) == {}
    assert plans(snapshot(Node("n1")), CONFIG, IpMasqFile()) == {}


@pytest.mark.parametrize(
    ("text", "four", "six"),
    [
        (None, False, True),
        ("{}", True, True),
        ("masqLinkLocal: true", False, True),
        ("masqLinkLocalIPv6: true", True, False),
    ],
)
def test_link_local_addresses(tmp_path: Path, text: str | None, four: bool, six: bool) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    found = plans(snapshot(ONE), CONFIG, read_file(path))
    assert ("169.254.0.0/16" in texts(found[4].excluded), "fe80::/10" in texts(found[6].excluded)) == (four, six)


def test_the_file_in_both_notations(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nresyncInterval: 60s\n")
    assert texts(read_file(path).networks) == ["10.0.0.0/8", "fd00::/8"]
    path.write_text('{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": true}')
    assert read_file(path) == IpMasqFile((ip_network("10.0.0.0/8"),), True, False)
    assert read_file(tmp_path / "none") == IpMasqFile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs: expected a list"),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.1/8]",
            r"nonMasqueradeCIDRs\[1\]: expected a network .* '10.0.0.1/8'",
        ),
        ("nonMasqueradeCIDRs: [1]", r"nonMasqueradeCIDRs\[0\]: expected a network"),
        ("masqLinkLocal: yes please", "masqLinkLocal: expected true or false"),
        ("[", "neither YAML nor JSON"),
        ("[1]", "expected a mapping of keys"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_file(tmp_path / "file")


def test_the_configuration() -> None:
    config = parse(
        {"node_name": "n", "masquerade_exclude": ["10.0.0.0/8", "fd00::/8"], "masquerade_ports": "40000-50000"}, "test"
    )
    assert texts(config.masquerade_exclude) == ["10.0.0.0/8", "fd00::/8"]
    assert config.masquerade_port_range == (40000, 50000)
    for key, value, message in (
        ("masquerade_exclude", ["10.0.0.1/8"], "masquerade_exclude: expected networks such as"),
        ("masquerade_exclude", "10.0.0.0/8", "masquerade_exclude: expected a list of texts"),
        ("masquerade_ports", "1-2", "masquerade_ports: expected FIRST-LAST"),
        ("masquerade_ports", "50000-40000", "masquerade_ports: expected FIRST-LAST"),
        ("masquerade_ports", "many", "masquerade_ports: expected FIRST-LAST"),
        ("source_ports", "80-90", "source_ports: expected FIRST-LAST"),
        ("pod_mtu", 1000, "pod_mtu: expected 1280-65535"),
    ):
        with pytest.raises(BadInputError, match=message):
            parse({"node_name": "n", key: value}, "test")


def test_calls_from_outside_have_ports_of_their_own() -> None:
    shared = {"node_name": "n", "masquerade_ipv4": True, "masquerade_ports": "32768-65535"}
    with pytest.raises(BadInputError, match="source_ports: expected no port of masquerade_ports"):
        parse(shared, "test")
    assert parse({**shared, "source_ports": "20000-29999"}, "test").source_port_range == (20000, 29999)
    # No packet is translated from outside, or none is masqueraded.
    assert not parse({**shared, "services": False}, "test").serves_uplinks
    parse({**shared, "uplink_programs": False}, "test")
    parse({**shared, "masquerade_ipv4": False}, "test")


def test_intervals_are_disjoint_and_neighbours_are_one() -> None:
    networks = [ip_network(text) for text in ("10.0.2.0/24", "10.0.0.0/23", "10.0.0.128/25", "10.9.0.0/32")]
    assert _intervals(networks) == [
        (int(ip_address("10.0.0.0")), int(ip_address("10.0.3.0"))),
        (int(ip_address("10.9.0.0")), int(ip_address("10.9.0.1"))),
    ]


def test_plans_are_made_again_only_for_other_nodes_or_another_file(tmp_path: Path) -> None:
    config = Config("n1", masquerade_ipv4=True, ip_masq_agent_config=tmp_path / "file")
    keeper, first = Masquerade(config, lambda: None), snapshot(ONE)
    made = keeper._plans(first)
    assert keeper._plans(first) is made
    assert keeper._plans(snapshot(ONE, TWO)) != made
    keeper._file = IpMasqFile((ip_network("10.0.0.0/8"),))
    assert "10.0.0.0/8" in texts(keeper._plans(first)[4].excluded)
