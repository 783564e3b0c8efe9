"""Addresses without room in nn_ipcache are closed, and fair shares are kept."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.parse_cluster import cluster_policy
from netpolicy.types import LabelSet
from nodenet.abi import U32, LpmKey, PolicyKey, Rule, RuleDirection
from nodenet.compile import LocalNode, compile_once
from nodenet.compile.address_room import PREFIXES, fit, pod_networks, prefixes
from nodenet.compile.shares import Room
from nodenet.model import Direction, Identity, IPAddress, IPNetwork, Node, ObjectRef
from tests.unit.compile.build import endpoint, node, pod, store_of
from tests.unit.netpolicy.datapath import Datapath, Packet

LABELS = {300: LabelSet.of("small", {}), 400: LabelSet.of("large", {})}


def table(small: int, large: int, nodes: int = 1) -> dict[LpmKey, U32]:
    found = {LpmKey.host(ip_address(f"172.30.0.{n}")): U32(6) for n in range(nodes)}
    found |= {LpmKey.host(ip_address("10.1.0.0") + n): U32(300) for n in range(small)}
    return found | {LpmKey.host(ip_address("10.2.0.0") + n): U32(400) for n in range(large)}


def covers(keys: Iterable[LpmKey], address: IPAddress) -> bool:
    for key in keys:
        bits = key.prefixlen - (96 if key.addr.version == 4 else 0)
        if key.addr.version == address.version and address in ip_network(f"{key.addr}/{bits}"):
            return True
    return False


def of_nodes(*nodes: Node) -> tuple[IPNetwork, ...]:
    return pod_networks({ObjectRef("", one.name): one for one in nodes})


def test_what_fits_is_the_same_table() -> None:
    whole = table(10, 20)
    assert fit(whole, LABELS, (), Room(1, 1, 31)) == (whole, 0)
    assert fit(whole, LABELS, (), Room(1, 1, 31)).table is whole


def test_the_largest_namespace_loses_and_its_addresses_are_covered() -> None:
    whole, local = table(100, 2000), ip_address("10.2.7.100")
    found, left_out = fit(whole, LABELS, {local}, Room(1, 1, 1000))
    assert len(found) <= 1000
    kept = {key for key in whole if key in found}
    assert {key for key, value in whole.items() if value.value != 400} <= kept, "nodes, and who asks for less"
    assert LpmKey.host(local) in kept
    assert left_out == len(whole) - len(kept) > 1000
    unmanaged = [key for key, value in found.items() if value.value == Identity.UNMANAGED]
    assert len(unmanaged) == len(found) - len(kept) <= PREFIXES
    assert all(covers(unmanaged, key.addr) for key in whole if key not in kept)


def test_pods_whose_labels_are_not_known_take_no_room_from_others() -> None:
    whole = table(100, 300)
    unknown = {LpmKey.host(ip_address("10.3.0.0") + n): U32(Identity.UNMANAGED) for n in range(5000)}
    found, left_out = fit({**whole, **unknown}, LABELS, (), Room(1, 1, 1000))
    assert len(found) <= 1000
    assert left_out > 4000
    kept = [key for key in whole if found.get(key) == whole[key]]
    assert len(kept) == len(whole)
    unmanaged = [key for key, value in found.items() if value.value == Identity.UNMANAGED]
    assert all(covers(unmanaged, key.addr) for key in list(unknown)[::50])


@given(st.sets(st.ip_addresses(), max_size=600))
def test_few_prefixes_cover_all(addresses: set[IPAddress]) -> None:
    found = prefixes(addresses)
    assert len(found) <= PREFIXES
    assert all(covers(found, address) for address in addresses)


# One dense network, and small ones with other hosts beside them: one length for all prefixes would include these.
DENSE, SMALL = ip_network("10.2.0.0/21"), [ip_network(f"10.8.{n}.4/30") for n in range(10)]


@pytest.mark.parametrize("seed", range(5))
def test_prefixes_stay_within_the_pod_networks(seed: int) -> None:
    pods = {DENSE[n] for n in random.Random(seed).sample(range(2048), 1500)} | {one[1] for one in SMALL}
    found = prefixes(pods, [DENSE, *SMALL])
    assert len(found) <= PREFIXES
    assert all(covers(found, address) for address in pods)
    beside = [network[0] + step for network in (DENSE, *SMALL) for step in (-1, network.num_addresses)]
    assert not any(covers(found, address) for address in beside)


def test_a_host_beside_pod_networks_remains_the_world() -> None:
    pods = [pod(f"p{n}", str(DENSE[n])) for n in range(1500)] + [
        pod(f"q{n}", str(one[1])) for n, one in enumerate(SMALL)
    ]
    nodes = [node(f"n{n}", cidrs=[str(one)]) for n, one in enumerate((DENSE, *SMALL))]
    desired, names = compile_once(store_of(*nodes, *pods).snapshot(), LocalNode("n0", room=Room(10_000, 100, 400)))
    assert names.left_out_addresses
    ipcache = desired.tables["nn_ipcache"]
    closed = [key for key, value in ipcache.items() if value.value == Identity.UNMANAGED]
    assert all(covers(ipcache, one.ips[0]) for one in pods)
    assert any(covers(closed, one[1]) for one in SMALL)
    assert not any(covers(closed, one[0] + step) for one in SMALL for step in (-1, 4))


def test_more_pod_networks_than_prefixes() -> None:
    """Every pod without room is still closed: then hosts between the networks are too."""
    networks = of_nodes(*(node(f"n{i}", cidrs=[f"10.{i}.0.7/32"]) for i in range(256)))
    assert len(networks) == 256
    addresses = [network[0] for network in networks]
    found = prefixes(addresses, networks)
    assert len(found) <= PREFIXES
    assert all(covers(found, address) for address in addresses)
    assert of_nodes(node("a", cidrs=["10.2.0.0/24"]), node("b", cidrs=["10.2.1.0/24"])) == (ip_network("10.2.0.0/23"),)


def test_a_pod_without_room_does_not_pass_a_deny() -> None:
    """web may be called by all but pods with app=bad. Half of the bad pods have no room: they stay out."""
    spec = {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {}},
        "ingress": [
            {
                "action": "Deny",
                "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "bad"}}}}],
            }
        ],
    }
    policy = cluster_policy({"metadata": {"name": "no-bad"}, "spec": spec})
    bad = [pod(f"bad{n}", f"10.2.{n >> 8}.{n & 255}", labels={"app": "bad"}) for n in range(600)]
    store = store_of(
        pod("web", "10.1.0.1", labels={"app": "web"}), endpoint(1, "web", "10.1.0.1"), node("n2"), policy, *bad
    )
    for room, is_whole in ((Room(10_000, 100, 2000), True), (Room(10_000, 100, 400), False)):
        desired, names = compile_once(store.snapshot(), LocalNode("n1", room=room))
        assert bool(names.left_out_addresses) is not is_whole
        datapath = Datapath()
        names_of_tables = ("nn_policy", "nn_cidr", "nn_ipcache", "nn_endpoint")
        datapath.load({name: dict(desired.tables[name].items()) for name in names_of_tables})
        web = ip_address("10.1.0.1")
        for each in bad:
            assert not datapath.allows(Direction.INGRESS, Packet(each.ips[0], web, "TCP", 80))
        assert datapath.allows(Direction.INGRESS, Packet(ip_address("192.0.2.1"), web, "TCP", 80))


def test_each_subject_of_a_tier_has_the_deny_of_pods_without_room() -> None:
    spec = {
        "tier": "Baseline",
        "priority": 1,
        "subject": {"namespaces": {}},
        "egress": [{"action": "Deny", "to": [{"networks": ["192.0.2.0/24"]}]}],
    }
    policy = cluster_policy({"metadata": {"name": "p"}, "spec": spec})
    store = store_of(pod("web", "10.1.0.1"), endpoint(1, "web", "10.1.0.1"), policy)
    rules = compile_once(store.snapshot(), LocalNode("n1"))[0].tables["nn_policy"]
    (subject,) = {key.subject for key in rules}
    found = {key: rule for key, rule in rules.items() if key.peer == Identity.UNMANAGED}
    assert found == {PolicyKey(72, subject, 3, RuleDirection.ADMIN_EGRESS, 0, 0): Rule.deny(0, (1 << 24) - 1)}
