"""Which chains of other programs are named."""

from __future__ import annotations

from nodenet.agent.foreign_rules import sentences
from nodenet.link.chains import Chain
from nodenet.link.iptables import LegacyTable


def test_only_base_chains_at_forward_that_drop() -> None:
    chains = [
        Chain(2, "filter", "FORWARD", 2, True),
        Chain(1, "firewalld", "filter_FORWARD", 2, True),
        Chain(10, "filter", "FORWARD", 2, False),
        Chain(2, "filter", "INPUT", 1, True),
        Chain(2, "filter", "DOCKER"),
        Chain(7, "filter", "FORWARD", 2, True),
        Chain(2, "nodenet-x", "rules", 2, True),
    ]
    legacy = [LegacyTable(4, "filter", (), True), LegacyTable(6, "filter", (), False)]
    assert [text.rpartition(": ")[2] for text in sentences(chains, legacy)] == [
        "nft list chain ip filter FORWARD",
        "nft list chain inet firewalld filter_FORWARD",
        "iptables-legacy -t filter -S FORWARD",
    ]
