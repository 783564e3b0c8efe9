"""The parts of the process that need no kernel: its settings, its own address, a program that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet.errors import BadInputError, CannotRunError
from nodenet.kubeproxy import main, programs
from nodenet.kubeproxy.model import Backend, Network, Service, Services
from nodenet.model import Node

GIVEN = {
    "mode": "nftables",
    "node": "node1",
    "kubeconfig": "/k",
    "state": "/s",
    "networks": [{"version": 4, "podCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/16"}],
}
NET = Network(4, "10.244.0.0/16", "10.96.0.0/16")
WEB = Service("web", "10.96.0.5", (Backend("10.244.1.5", 80),), "shop", 80)


def test_settings() -> None:
    assert main.settings(json.dumps(GIVEN)) == main.Settings("nftables", "node1", Path("/k"), Path("/s"), (NET,))


@pytest.mark.parametrize("change", [{"networks": [{}]}, {"networks": 4}, {"state": None}])
def test_bad_settings(change: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="settings: expected mode, node"):
        main.settings(json.dumps(GIVEN | change))
    with pytest.raises(BadInputError):
        main.settings("{")


def test_node_ports_by_mode() -> None:
    """nftables: the node's primary address; iptables: all of its addresses."""
    node = Node("node1", tuple(map(ip_address, ("172.30.0.11", "172.30.0.12", "fd00::b"))))
    assert main.network_of(NET, "nftables", node) == replace(NET, node_ip="172.30.0.11", node_port_ips=("172.30.0.11",))
    assert main.network_of(NET, "iptables", node) == replace(NET, node_ip="172.30.0.11")
    assert main.network_of(NET, "nftables", Node("node1")) == NET


def test_unknown_mode() -> None:
    with pytest.raises(BadInputError, match="expected one of iptables, nftables, ipvs, got 'ebpf'"):
        programs.writer("ebpf")


def test_a_failed_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRunError, match="exit status 2: no such thing"):
        programs.run(["sh", "-c", "echo no such thing >&2; exit 2"], "x")
    with pytest.raises(CannotRunError, match="does-not-exist: it is not installed"):
        programs.run(["does-not-exist"], "x")
    programs.run(["does-not-exist"], "")


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
def test_a_writer_writes_differences(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(programs, "run", lambda command, text: texts.append(text))
    writer = programs.writer(mode)
    more = replace(WEB, name="more", cluster_ip="10.96.0.6")
    states: list[Services] = [(WEB,), (WEB, more)]
    written = []
    for state in states:
        texts.clear()
        writer.write(NET, state)
        written.append("".join(texts))
    assert "10.96.0.5" in written[0]
    assert "10.96.0.6" in written[1]
    backend = "10.244.1.5"
    assert written[1].count(backend) <= written[0].count(backend), "the first Service is not written again"


def test_another_address_of_the_node_makes_the_table_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(programs, "run", lambda command, text: texts.append(text))
    writer = programs.writer("nftables")
    for address in ("172.30.0.11", "172.30.0.12"):
        texts.clear()
        writer.write(replace(NET, node_ip=address, node_port_ips=(address,)), (WEB,))
        assert f"nodeport-ips {{ {address} }}" in texts[0]
    assert texts[0].startswith("delete table ip kube-proxy\n")
