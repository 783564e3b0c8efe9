"""`map dump` and `map get`: every record has words, and a key in words is the record."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from netpolicy.parse import network_policy
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import RuleRef
from nodenet import abi, tables
from nodenet.agent.map_keys import parse_key
from nodenet.agent.map_words import Words, flags_of
from nodenet.compile.state import LocalNode
from nodenet.engine import Compiled, Engine
from nodenet.errors import BadInputError
from nodenet.model import Direction, HostPort, Namespace, Node, Protocol
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import listings
from nodenet.testing import fake_tables
from tests.unit.compile.build import endpoint, pod, service, slice_

A = ip_address("10.0.0.1")
POLICY = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 80}]}],
    },
}


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
    objects = [
        Node("node1", (ip_address("172.30.0.11"),)),
        Namespace("default", {}),
        pod(
            "web", "10.0.0.1", labels={"app": "web"}, node_name="node1", host_ports=(HostPort(9090, 80, Protocol.TCP),)
        ),
        endpoint(7, "web", "10.0.0.1", uid="uid-web"),
        service("web", "10.96.0.1"),
        slice_("web", "10.0.0.1"),
        network_policy(POLICY),
    ]
    engine.feed(*listings(objects))
    engine.run_once()
    return engine.current


def row(compiled: Compiled, table: str, key: Any, value: Any) -> dict[str, Any]:
    (found,) = Words(compiled, 100.0).rows(table, [(key, value)])
    return found


def test_numbers_have_names(compiled: Compiled) -> None:
    wanted = compiled.desired.tables
    ((key, rule),) = wanted["nn_policy"].items()
    found = row(compiled, "nn_policy", key, abi.RuleVersions.of(rule, None, 3))
    number, region = key.subject, key.peer
    assert found["key"] == {
        "prefixlen": 96,
        "subject": f"{number} (ns=default,app=web)",
        "peer": f"{region} (cidr:192.0.2.0/24)",
        "direction": "ingress",
        "protocol": "TCP",
        "port": 80,
    }
    words = f"allow, precedence 0, rule {rule.rule_id} (default/web ingress[0])"
    assert found["value"] == {"now": words, "was": "none", "since": 3}


def test_policy_keys_and_rules_name_their_tier(compiled: Compiled) -> None:
    ref = RuleRef("", "deny-all", PolicyDirection.INGRESS, 0)
    names = replace(compiled.names, rules={**compiled.names.rules, 7: ref})
    with_rule = replace(compiled, names=names)
    rule = abi.Rule.deny(7, 5)
    found = {
        place: row(with_rule, "nn_policy", abi.PolicyKey(72, 300, 0, place, 0, 0), rule)["key"]["direction"]
        for place in abi.RuleDirection
    }
    assert [*found.values()] == ["ingress", "egress", "admin_ingress", "admin_egress"]
    # What is printed is accepted as a key.
    for place, words in found.items():
        assert parse_key(abi.PolicyKey, ["subject=300", f"direction={words}"]).direction is place
    value = row(with_rule, "nn_policy", abi.PolicyKey(72, 300, 0, 5, 0, 0), abi.RuleVersions.of(rule, None, 3))["value"]
    assert value["now"].endswith("rule 7 (ClusterNetworkPolicy deny-all ingress[0])")


def test_services(compiled: Compiled) -> None:
    wanted = compiled.desired.tables
    slot = next((key, value) for key, value in wanted["nn_frontend"].items() if key.slot)
    found = row(compiled, "nn_frontend", *slot)
    assert found["value"]["backend_id"].endswith("(10.0.0.1:8080)")
    assert found["value"]["service_id"].endswith("(default/web)")
    number, frontend = next(item for item in wanted["nn_revnat"].items() if item[0].value in compiled.names.services)
    found = row(compiled, "nn_revnat", number, frontend)
    assert found["key"] == {"service_id": f"{number.value} (default/web)"}
    assert found["value"] == {"addr": "10.96.0.1", "port": 80, "protocol": "TCP"}
    member = row(compiled, "nn_member", abi.MemberKey(number.value | abi.MEMBER_AFFINITY, 1), frontend)
    assert member["key"]["service_id"] == f"{number.value} (default/web), with session affinity"


def test_a_host_port_is_named_after_its_pod(compiled: Compiled) -> None:
    (number,) = compiled.names.host_ports
    found = row(compiled, "nn_revnat", abi.U32(number), abi.AddressPort(A, 9090, 6))
    assert found["key"] == {"service_id": f"{number} (hostPort of default/web)"}


def test_connections(compiled: Compiled) -> None:
    flags = abi.CtFlag.SEEN_REPLY | abi.CtFlag.RST
    entry = abi.CtEntry(90, 2, 0, 0, Direction.EGRESS, int(flags), 7, 40)
    found = row(compiled, "nn_ct", abi.CtKey(A, A, 1, 2, 99), entry)
    assert found["key"]["protocol"] == "99"
    value = found["value"]
    assert (value["last_seen"], value["created"], value["flags"]) == ("10 s ago", "60 s ago", "seen_reply+rst")
    assert (value["endpoint_id"], value["direction"]) == ("7 (default/web)", "egress")


def test_counters_are_summed_over_the_cpus(compiled: Compiled) -> None:
    value = [abi.MetricsEntry(1, 10), abi.MetricsEntry(2, 20)]
    found = row(compiled, "nn_metrics", abi.MetricsKey(133, 1), value)
    assert found == {
        "key": {"reason": "POLICY_DENIED", "direction": "ingress"},
        "value": {"packets": 3, "octets": 30},
    }
    ended = row(compiled, "nn_metrics", abi.MetricsKey.ended(abi.FairTable.NAT, abi.EntryEnd.EVICTED), value)
    assert ended["key"] == {"entries_of": "nn_nat", "ended": "evicted"}


@pytest.mark.parametrize("name", sorted(tables.KEYED))
def test_every_map_has_words(compiled: Compiled, name: str) -> None:
    """Whatever bytes the kernel returns."""
    records = tables.KEYED[name]
    key = records.key.unpack(_bytes(records.key))
    value: Any = records.value.unpack(_bytes(records.value))
    if name == "nn_metrics":
        value = [value]
    found = row(compiled, name, key, value)
    assert found["key"]
    assert found["value"]
    assert all(isinstance(word, str | int) for part in found.values() for word in part.values())


def _bytes(kind: type[Any]) -> bytes:
    """As many ones as the record has bytes: the direction of a flow must be a known one."""
    for size in range(1, 129):
        try:
            kind.unpack(b"\x01" * size)
        except Exception:  # noqa: BLE001 the sizes of records are not public
            continue
        return b"\x01" * size
    raise AssertionError(kind)


def test_unknown_bits_are_shown() -> None:
    assert flags_of(abi.EndpointFlag, 0) == "none"
    assert flags_of(abi.EndpointFlag, 0x81) == "isolated_ingress+0x80"


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        (abi.LpmKey, ["10.0.0.1"], abi.LpmKey(128, A)),
        (abi.LpmKey, ["addr=10.0.0.0", "prefixlen=24"], abi.LpmKey(120, ip_address("10.0.0.0"))),
        (abi.AddressKey, ["fd00::1"], abi.AddressKey(ip_address("fd00::1"))),
        (abi.U32, ["0x10"], abi.U32(16)),
        (abi.FrontendKey, ["10.0.0.1", "port=80", "protocol=tcp"], abi.FrontendKey(A, 80, Protocol.TCP, 0)),
        (
            abi.PolicyKey,
            ["subject=300", "peer=2", "direction=ingress", "protocol=TCP", "port=80"],
            abi.PolicyKey(96, 300, 2, Direction.INGRESS, Protocol.TCP, 80),
        ),
    ],
)
def test_a_key_in_words(kind: type[Any], words: list[str], expected: Any) -> None:
    found = parse_key(kind, words)
    assert found == expected
    assert found.pack() == expected.pack()


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (abi.LpmKey, ["x"], "KEY: addr: expected an IP address, got 'x'"),
        (abi.FrontendKey, ["port=80"], "KEY: addr: required"),
        (abi.FrontendKey, ["10.0.0.1", "http"], "KEY: expected NAME=VALUE, got 'http'"),
        (abi.FrontendKey, ["10.0.0.1", "colour=80"], "KEY: this map's key has no 'colour'"),
        (abi.FrontendKey, ["10.0.0.1", "protocol=x"], "KEY: protocol: expected a number or one of ANY, ICMP, TCP"),
        (abi.FrontendKey, ["10.0.0.1", "port=-1"], "KEY: port: expected 0 to 65535, got -1"),
        (abi.FrontendKey, ["10.0.0.1", "port=65536"], "KEY: port: expected 0 to 65535, got 65536"),
        (abi.LpmKey, ["10.0.0.1", "prefixlen=33"], "KEY: prefixlen: expected 0 to 32, got 33"),
        (abi.CtKey, ["10.0.0.1"], "KEY: remote: required"),
        (
            abi.PolicyKey,
            ["direction=3"],
            "KEY: direction: expected one of INGRESS (1), EGRESS (2), ADMIN_INGRESS (5), ADMIN_EGRESS (6), got 3",
        ),
        (abi.PolicyKey, ["direction=in"], "KEY: direction: expected a number or one of INGRESS (1), EGRESS (2), ADMIN"),
        (abi.FrontendKey, ["10.0.0.1", "scope=2"], "KEY: scope: expected one of INTERNAL (0), EXTERNAL (1), got 2"),
    ],
)
def test_bad_keys_are_named(kind: type[Any], words: list[str], message: str) -> None:
    with pytest.raises(BadInputError) as told:
        parse_key(kind, words)
    assert str(told.value).startswith(message)
