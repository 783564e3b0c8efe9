"""The resolver after changes gives what a new one gives."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from netpolicy.entries import ANY, PORT_BITS, EntryKey
from netpolicy.regions import Prefix, Regions, partition
from netpolicy.resolve import Resolver
from netpolicy.types import (
    Direction,
    IPBlock,
    LabelSet,
    NamedPort,
    NetworkPolicy,
    Peer,
    PolicyRef,
    PortRule,
    Protocol,
    Rule,
    Selector,
)

WEB = LabelSet.of("shop", {"app": "web"})
DB = LabelSet.of("shop", {"app": "db"}, [NamedPort("sql", Protocol.TCP, 5432)])
# Egress to every peer, on the port that the peer calls `sql`. No rule has peers, so nothing is selected by labels.
SQL = NetworkPolicy(
    "shop",
    "sql",
    Selector(),
    frozenset({Direction.EGRESS}),
    egress=(Rule(ports=(PortRule(Protocol.TCP, "sql"),)),),
)


def test_a_named_port_of_a_later_pod_without_any_selection() -> None:
    resolver = Resolver()
    resolver.change_groups({1: WEB}, [])
    resolver.change_policies({SQL.ref: SQL})
    assert resolver.resolve(*resolver.demands([WEB]))[0][0].entries == {}
    resolver.change_groups({2: DB}, [])
    entry = EntryKey(2, Direction.EGRESS, Protocol.TCP, 5432, PORT_BITS)
    (found,), _ = resolver.resolve(*resolver.demands([WEB]))
    assert (found.policies, found.entries) == ((PolicyRef("shop", "sql"),), {entry: SQL.rule_ref(Direction.EGRESS, 0)})
    resolver.change_groups({}, [2])
    assert resolver.resolve(*resolver.demands([WEB]))[0][0].entries == {}


def test_a_rule_without_peers_and_names_concerns_no_label_set() -> None:
    resolver = Resolver()
    every = NetworkPolicy("shop", "all", Selector(), frozenset({Direction.EGRESS}), egress=(Rule(),))
    resolver.change_groups({1: WEB}, [])
    resolver.change_policies({every.ref: every})
    (before,), _ = resolver.resolve(*resolver.demands([WEB]))
    assert list(before.entries) == [EntryKey(ANY, Direction.EGRESS, None, 0, 0)]
    resolver.change_groups({2: DB}, [])
    assert resolver.resolve(*resolver.demands([WEB]))[0][0] is before


def regions_of(*networks: str) -> Regions:
    found = partition(Prefix.of(ip_network(network)) for network in networks)
    return Regions(found).numbered({region: 1 << 24 | number for number, region in enumerate(found)})


@pytest.mark.parametrize(
    ("closed", "sizes"),
    [((), (3, 1)), (("blocks",), (0, 1)), (("groups",), (3, 0)), (("blocks", "groups"), (0, 0))],
)
def test_an_imagined_demand_is_without_the_policies_that_are_closed(
    closed: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    """Policies with and without blocks: only those with blocks depend on the regions."""
    networks = ("198.51.100.0/24", "203.0.113.0/24")
    blocks = tuple(Peer(block=IPBlock(ip_network(network))) for network in networks)
    ingress = frozenset({Direction.INGRESS})
    of_blocks = NetworkPolicy("shop", "blocks", Selector(), ingress, ingress=(Rule(peers=blocks),))
    of_groups = NetworkPolicy("shop", "groups", Selector(), ingress, ingress=(Rule(peers=(Peer(pods=Selector()),)),))
    resolver = Resolver()
    resolver.change_groups({1: WEB}, [])
    resolver.change_policies({policy.ref: policy for policy in (of_blocks, of_groups)})
    known = regions_of(*networks)
    resolver.change_regions(known, [region.prefix for region in known.regions])
    (demand,), _ = resolver.demands([WEB])
    assert demand.sizes == (2, 1)
    # A prefix of another policy divides one of the blocks.
    imagined = resolver.imagined(
        demand, regions_of(*networks, "203.0.113.128/25"), {PolicyRef("shop", name) for name in closed}
    )
    assert (imagined.sizes, imagined.total, imagined.key) == (sizes, sum(sizes), demand.key)
