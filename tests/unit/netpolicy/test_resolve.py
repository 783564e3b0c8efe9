"""The resolver after changes gives what a new one gives."""

from __future__ import annotations

from netpolicy.resolve import ANY, PORT_BITS, EntryKey, Resolver
from netpolicy.types import (
    Direction,
    LabelSet,
    NamedPort,
    NetworkPolicy,
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
    assert resolver.resolve(resolver.demands([WEB]))[0].entries == {}
    resolver.change_groups({2: DB}, [])
    entry = EntryKey(2, Direction.EGRESS, Protocol.TCP, 5432, PORT_BITS)
    (found,) = resolver.resolve(resolver.demands([WEB]))
    assert (found.policies, found.entries) == ((PolicyRef("shop", "sql"),), {entry: SQL.rule_ref(Direction.EGRESS, 0)})
    resolver.change_groups({}, [2])
    assert resolver.resolve(resolver.demands([WEB]))[0].entries == {}


def test_a_rule_without_peers_and_names_concerns_no_label_set() -> None:
    resolver = Resolver()
    every = NetworkPolicy("shop", "all", Selector(), frozenset({Direction.EGRESS}), egress=(Rule(),))
    resolver.change_groups({1: WEB}, [])
    resolver.change_policies({every.ref: every})
    (before,) = resolver.resolve(resolver.demands([WEB]))
    assert list(before.entries) == [EntryKey(ANY, Direction.EGRESS, None, 0, 0)]
    resolver.change_groups({2: DB}, [])
    assert resolver.resolve(resolver.demands([WEB]))[0] is before
