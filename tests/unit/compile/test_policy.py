"""From pods and policies to map entries: what the kernel will be told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from netpolicy.parse import network_policy
from netpolicy.types import Protocol
from nodenet.abi import U32, Action, EndpointFlag, LpmKey, PolicyKey
from nodenet.compile.identities import restore
from nodenet.compile.ids import Ids
from nodenet.model import Direction, NamedPort, ObjectRef, Pod
from tests.unit.compile.build import compile_policy

WEB, DB, HOST = ObjectRef("shop", "web-0"), ObjectRef("shop", "db-0"), ObjectRef("kube-system", "proxy")


def pod(ref: ObjectRef, ip: str, labels: dict[str, str], **more: Any) -> Pod:
    return Pod(ref, "uid", labels, ips=(ip_address(ip),), phase="Running", **more)


PODS = {
    WEB: pod(WEB, "10.0.0.1", {"app": "web", "pod-template-hash": "abc"}),
    DB: pod(DB, "10.0.0.2", {"app": "db"}, named_ports=(NamedPort("sql", Protocol.TCP, 5432),)),
    HOST: pod(HOST, "192.0.2.1", {"app": "proxy"}, host_network=True),
}


def policy(name: str = "db", **spec: Any) -> Any:
    return network_policy({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})


ONLY_WEB = policy(
    podSelector={"matchLabels": {"app": "db"}},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "sql"}]}],
)


def test_entries_name_both_ends_by_identity_and_the_rule_by_number() -> None:
    tables = compile_policy(PODS, {}, [ONLY_WEB], [DB], Ids())
    web, db = tables.identities[WEB], tables.identities[DB]
    ((key, value),) = tables.policy.items()
    assert key == PolicyKey(96, db, web, Direction.INGRESS, 6, 5432)
    assert str(tables.rules[value.rule_id]) == "shop/db ingress[0]"
    assert tables.flags == {db: EndpointFlag.ISOLATED_INGRESS}
    assert [str(ref) for ref in tables.isolating[db][Direction.INGRESS]] == ["shop/db"]
    assert dict(tables.labels[web].labels) == {"app": "web"}


def test_who_has_an_identity() -> None:
    """hostNetwork pods are their node; a finished pod has none, unless its attachment is still here."""
    finished = {**PODS, WEB: Pod(WEB, "uid", {}, phase="Succeeded")}
    assert compile_policy(PODS, {}, [], [], Ids()).identities.keys() == {WEB, DB}
    assert compile_policy(finished, {}, [], [], Ids()).identities.keys() == {DB}
    assert compile_policy(finished, {}, [], [WEB], Ids()).identities.keys() == {WEB, DB}


def test_pods_of_elsewhere_and_of_unknown_names_make_no_entries() -> None:
    tables = compile_policy(PODS, {}, [ONLY_WEB], [WEB, ObjectRef("shop", "nobody")], Ids())
    assert tables.policy == {}
    assert list(tables.flags) == [tables.identities[WEB]]


def test_a_label_of_high_cardinality_counts_once_a_policy_names_it() -> None:
    twin = ObjectRef("shop", "web-1")
    pods = {**PODS, twin: pod(twin, "10.0.0.3", {"app": "web", "pod-template-hash": "xyz"})}
    same = compile_policy(pods, {}, [ONLY_WEB], [DB], Ids())
    assert same.identities[WEB] == same.identities[twin]
    canary = policy("canary", podSelector={"matchLabels": {"pod-template-hash": "xyz"}})
    apart = compile_policy(pods, {}, [ONLY_WEB, canary], [DB], Ids())
    # Every number is another then: one that now stands for fewer pods must not be mistaken for the old one.
    assert len({*same.identities.values()} & {*apart.identities.values()}) == 0
    assert apart.identities[WEB] != apart.identities[twin]


def test_blocks_become_regions() -> None:
    block = policy(
        podSelector={},
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]}],
    )
    tables = compile_policy(PODS, {}, [block], [WEB], Ids())
    whole, hole = LpmKey.of(ip_network("192.0.2.0/24")), LpmKey.of(ip_network("192.0.2.128/25"))
    assert tables.cidr.keys() == {whole, hole}
    ((key, _),) = tables.policy.items()
    assert U32(key.peer) == tables.cidr[whole]
    assert key.prefixlen == 72
    assert tables.regions[key.peer] == ip_network("192.0.2.0/24")


def test_a_port_name_towards_a_block_means_that_pods_port_alone() -> None:
    """Its address becomes a region of its own; the same port of its neighbours stays closed."""
    named = policy(
        podSelector={},
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "sql"}]}],
    )
    tables = compile_policy(PODS, {}, [named], [WEB], Ids())
    ((key, _),) = tables.policy.items()
    assert U32(key.peer) == tables.cidr[LpmKey.host(ip_address("10.0.0.2"))]
    assert key.port == 5432


def test_all_rules_are_equally_strong() -> None:
    """Then a longer prefix is never weaker than one that covers it, and no endpoint needs the lookups of tiers
    (docs/decisions/0040)."""
    tables = compile_policy(PODS, {}, [ONLY_WEB], [DB, WEB], Ids())
    assert {(rule.action, rule.precedence) for rule in tables.policy.values()} == {(Action.ALLOW, 0)}
    tiered = EndpointFlag.TIERED_INGRESS | EndpointFlag.TIERED_EGRESS
    assert not any(flags & tiered for flags in tables.flags.values())


def test_switched_off_leaves_identities_and_nothing_else() -> None:
    tables = compile_policy(PODS, {}, [ONLY_WEB], [DB], Ids(), enforce=False)
    assert (tables.policy, tables.cidr, tables.isolating[tables.identities[DB]]) == ({}, {}, {})
    assert tables.flags == {tables.identities[DB]: EndpointFlag(0)}


def test_a_restart_gives_the_same_numbers_from_the_maps() -> None:
    block = policy("block", podSelector={}, ingress=[{"from": [{"ipBlock": {"cidr": "::/0"}}]}])
    before = compile_policy(PODS, {}, [ONLY_WEB, block], [DB], Ids())
    ipcache = {LpmKey.host(PODS[ref].ips[0]): U32(number) for ref, number in before.identities.items()}
    # Numbers that another key would have had, but for a collision: the next probe.
    moved_ipcache = {key: U32(value.value + 1) for key, value in ipcache.items()}
    moved_cidr = {key: U32(value.value + 1) for key, value in before.cidr.items()}
    ids = Ids()
    restore(ids, PODS, [ONLY_WEB, block], moved_ipcache, moved_cidr)
    after = compile_policy(PODS, {}, [ONLY_WEB, block], [DB], ids)
    assert after.identities == {ref: number + 1 for ref, number in before.identities.items()}
    assert after.cidr == moved_cidr
    assert compile_policy(PODS, {}, [ONLY_WEB, block], [DB], Ids()) == before
