from __future__ import annotations

import pytest

from nodenet.errors import BadInputError
from nodenet.lab import layout, names
from nodenet.lab.layout import IPFamily


def test_a_dual_stack_lab_has_both_families_everywhere_ipv4_first() -> None:
    lab = layout.plan("x", 2, IPFamily.DUAL)
    second = lab.nodes[1]
    assert [str(a) for a in second.addresses] == ["172.30.0.12/24", "fd00:172:30::c/64"]
    assert [str(n) for n in second.pod_cidrs] == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert [str(n) for n in lab.service_cidrs] == ["10.96.0.0/16", "fd00:10:96::/112"]


def test_a_single_family_has_nothing_of_the_other() -> None:
    for family, version in ((IPFamily.IPV4, 4), (IPFamily.IPV6, 6)):
        lab = layout.plan("x", 1, family)
        everything = [*lab.fabric, *lab.service_cidrs, *lab.nodes[0].addresses, *lab.nodes[0].pod_cidrs]
        assert {found.version for found in everything} == {version}


def test_no_two_nodes_of_the_largest_lab_share_anything() -> None:
    lab = layout.plan("x", layout.MAX_NODES, IPFamily.DUAL)
    addresses = [a for node in lab.nodes for a in (*node.addresses, *node.pod_cidrs)]
    assert len(set(addresses)) == len(addresses) == 4 * layout.MAX_NODES
    assert not set(lab.fabric) & set(addresses)


@pytest.mark.parametrize("nodes", [0, -1, 201])
def test_a_number_of_nodes_outside_the_range_is_refused(nodes: int) -> None:
    with pytest.raises(BadInputError, match=f"--nodes: expected 1 to 200, got {nodes}"):
        layout.plan("x", nodes, IPFamily.IPV4)


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "a/b", "a" * 33, "../x", "a b"])
def test_a_name_that_could_not_be_told_apart_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="lab name"):
        layout.plan(name, 1, IPFamily.IPV4)


def test_the_plan_is_the_same_after_a_round_through_json() -> None:
    lab = layout.plan("x", 3, IPFamily.DUAL, 28)
    assert layout.from_json(layout.to_json(lab, 28)) == lab


def test_an_unknown_node_names_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="no node 'node9'") as caught:
        layout.plan("x", 2, IPFamily.IPV4).node("node9")
    assert "node1, node2" in caught.value.hint


def test_prefixes_of_two_labs_never_match_each_other() -> None:
    assert not names.node_netns("a-b", "node1").startswith(names.netns_prefix("a"))
    assert names.pod_netns("a", "default", "web").startswith(names.netns_prefix("a"))


def test_a_long_name_fits_a_file_name_and_stays_unique() -> None:
    one, two = (names.pod_netns("lab", "n" * 63, "p" * 252 + end) for end in "ab")
    assert len(one) == len(two) == 255
    assert one != two
    assert one.startswith(names.netns_prefix("lab"))
    assert names.pod_netns("lab", "default", "web") == "nn.lab.default.web"
