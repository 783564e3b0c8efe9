"""Numbers: the same everywhere, never two meanings at a time, and back again after a restart."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address

import pytest

from netpolicy.regions import Prefix, Region
from netpolicy.types import Direction, LabelSet, NamedPort, Protocol, RuleRef
from nodenet import model
from nodenet.abi import AddressPort
from nodenet.compile.ids import IDENTITIES, REGIONS, RULES, IdentityKey, Ids, Numbering, Space, canonical

WEB = IdentityKey(LabelSet.of("shop", {"app": "web"}, [NamedPort("http", Protocol.TCP, 80)]))


def test_numbers_are_in_their_space_and_the_same_in_every_process() -> None:
    code = (
        "from netpolicy.types import *; from nodenet.compile.ids import *; "
        "print(Ids().identities.number(IdentityKey(LabelSet.of('shop', {'app': 'web'}, "
        "[NamedPort('http', Protocol.TCP, 80)]))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == Ids().identities.number(WEB)
    ids = Ids()
    assert IDENTITIES.first <= ids.identities.number(WEB) <= IDENTITIES.last
    assert REGIONS.first <= ids.regions.number(Region(Prefix(0, 0), ())) <= REGIONS.last
    assert RULES.first <= ids.rules.number(RuleRef("shop", "web", Direction.INGRESS, 0)) <= RULES.last


def test_spaces_of_identities_and_regions_do_not_meet() -> None:
    assert IDENTITIES.last < REGIONS.first == 1 << 24


def test_collisions_probe_on_and_a_full_space_says_so() -> None:
    tight: Numbering[str] = Numbering(Space(10, 12))
    assert sorted(tight.number(key) for key in "abc") == [10, 11, 12]
    assert len(tight) == 3
    with pytest.raises(OverflowError, match="between 10 and 12"):
        tight.number("d")


def test_a_number_is_free_only_after_the_maps_forgot_it() -> None:
    numbering: Numbering[str] = Numbering(Space(1, 2))
    first, second = numbering.number("a"), numbering.number("b")
    numbering.keep({"b"})
    with pytest.raises(OverflowError):
        numbering.number("c")
    numbering.settle()
    assert numbering.number("c") == first
    assert numbering.number("b") == second


def test_what_comes_back_before_it_was_forgotten_keeps_its_number() -> None:
    numbering: Numbering[str] = Numbering(Space(1, 2))
    first = numbering.number("a")
    numbering.keep(set())
    assert numbering.number("a") == first
    numbering.settle()
    assert numbering.number("a") == first
    assert len(numbering) == 1


def test_restored_numbers_are_believed_only_where_they_can_be_true() -> None:
    """After a restart what collided keeps the numbers of before, whichever is asked for first."""
    before: Numbering[str] = Numbering(Space(1, 3))
    held = {key: before.number(key) for key in "abc"}
    after: Numbering[str] = Numbering(Space(1, 3), held)
    assert {key: after.number(key) for key in "cba"} == held
    wide: Numbering[str] = Numbering(IDENTITIES)
    number = wide.number("a")
    strange: Numbering[str] = Numbering(IDENTITIES, {"a": number + 1000})
    assert strange.number("a") == number


def test_the_text_behind_a_number_has_the_api_s_words():
    """Other text gives other numbers: at an upgrade every rule and identity would change (decision 0035)."""
    assert canonical(RuleRef("shop", "let", Direction.INGRESS, 0)) == '"shop/let ingress[0]"'
    labels = LabelSet.of("shop", {"app": "web"}, [NamedPort("http", Protocol.TCP, 80)])
    # A restart believes a number only if its key still gives it.
    assert canonical(AddressPort(ip_address("10.0.0.1"), 80, model.Protocol.TCP)) == '["10.0.0.1",80,6]'
    assert canonical(AddressPort(ip_address("fd00::1"), 53, 17)) == '["fd00::1",53,17]'
    assert canonical(IdentityKey(labels)) == '["shop",[["app","web"]],[["http","TCP",80]],[]]'


def test_words_and_numbers_have_the_same_names():
    assert set(Direction.__members__) == set(model.Direction.__members__)
    assert set(Protocol.__members__) < set(model.Protocol.__members__)
