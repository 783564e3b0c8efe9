"""Rules as values: action, precedence and name, and values with two versions, against a plain reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP

from nodenet import abi
from nodenet.abi import Action, DropReason, EndpointFlag, Rule, RuleDirection
from nodenet.bpf import loader
from nodenet.model import Direction

from .conftest import TC_OK, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

POD, REMOTE = "10.0.1.1", "192.0.2.200"
SUBJECT, PEER = 1000, 2000
WIDE, DEEP = (1 << 24) + 1, (1 << 24) + 2
UDP_NUMBER, PORT = 17, 80
GENERATION = 10
# Prefixes of (direction, protocol, port) that a datagram to port 80 has, and two that it has not.
FORMS = (
    (abi.POLICY_BITS_DIRECTION, 0, 0),
    (abi.POLICY_BITS_PROTOCOL, UDP_NUMBER, 0),
    (abi.POLICY_BITS_PROTOCOL + 12, UDP_NUMBER, 80),
    (abi.POLICY_BITS_PROTOCOL + 16, UDP_NUMBER, 80),
    (abi.POLICY_BITS_PROTOCOL + 16, UDP_NUMBER, 81),
    (abi.POLICY_BITS_PROTOCOL, 6, 0),
)
RULES = st.none() | st.builds(
    lambda action, precedence, number: Rule(precedence << 8 | action, number),
    st.sampled_from([Action.ALLOW, Action.DENY]),
    st.integers(0, 2),
    st.integers(1, 9),
)
ADMIN_RULES = st.none() | st.builds(
    lambda action, precedence, number: Rule(precedence << 8 | action, number),
    st.sampled_from([Action.ALLOW, Action.DENY, Action.PASS]),
    st.integers(0, (1 << 24) - 1),
    st.integers(11, 19),
)
LOWER, ADMIN = RuleDirection.EGRESS, RuleDirection.ADMIN_EGRESS
# Direction, peer, and prefix of (direction, protocol, port).
Place = tuple[RuleDirection, int, tuple[int, int, int]]


@dataclass(frozen=True)
class Version:
    """What is in force: the rules of each tier and peer by form, the region of the peer's address, and the subject's
    flags."""

    rules: dict[Place, Rule | None]
    region: int
    flags: int
    peer: int


def expected(version: Version) -> Rule | None:
    """The rule that decides about a datagram to port 80; None: there is none."""
    if version.flags & EndpointFlag.TIERED_EGRESS:
        first = of_tier(version, ADMIN)
        if first is not None and first.action is not Action.PASS:
            return first
    return of_tier(version, LOWER)


def of_tier(version: Version, tier: RuleDirection) -> Rule | None:
    hits = []
    for peer in (version.peer, version.region, 0):
        # FORMS is sorted from the shortest prefix to the longest.
        forms = [form for form in FORMS[3::-1] if version.rules.get((tier, peer, form)) is not None]
        if forms and (peer or not hits or hits[-1] is not None):
            hits.append(version.rules[tier, peer, forms[0]])
    found = [rule for rule in hits if rule is not None]
    if not found:
        return None
    if not version.flags & EndpointFlag.TIERED_EGRESS:
        return found[0]
    return max(found, key=lambda rule: (rule.precedence, rule.action))


@st.composite
def versions(draw: st.DrawFn) -> Version:
    peers = st.sampled_from([PEER, 0, WIDE, DEEP])
    places = st.tuples(peers, st.sampled_from(FORMS))
    rules: dict[Place, Rule | None] = {}
    for tier, found in ((LOWER, RULES), (ADMIN, ADMIN_RULES)):
        rules |= {(tier, *place): rule for place, rule in draw(st.dictionaries(places, found, max_size=8)).items()}
    flags = draw(st.sampled_from([0, 2, 16, 18]))
    return Version(rules, draw(st.sampled_from([0, WIDE, DEEP])), flags, draw(st.sampled_from([PEER, 2])))


@pytest.fixture(scope="module")
def own_datapath(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    datapath = Datapath(bpffs / "rules", bpf_cache, loader.DatapathConfig())
    try:
        yield datapath
    finally:
        datapath.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions(), versions(), st.booleans(), st.integers(1, 60000))
def test_the_strongest_rule_of_the_version_in_force_decides(
    own_datapath: Datapath, now: Version, was: Version, switched: bool, sport: int
) -> None:
    datapath = own_datapath
    datapath.reset()
    tables = datapath.tables
    for place in {**now.rules, **was.rules}:
        tier, peer, (bits, protocol, port) = place
        key = abi.PolicyKey(bits, SUBJECT, peer, tier, protocol, port)
        # None in one version of the longest entry hides the shorter ones: write what covers it, as the planner does.
        both = [_covered(version, place) for version in (now, was)]
        tables["nn_policy"].update(key, abi.RuleVersions.of(*both, GENERATION))
    block, host = abi.LpmKey.of(ip_network("192.0.2.0/24")), abi.LpmKey.host(ip_address(REMOTE))
    tables["nn_cidr"].update(block, abi.NumberVersions(now.region, was.region, GENERATION))
    tables["nn_ipcache"].update(host, abi.NumberVersions(now.peer, was.peer, GENERATION))
    entry = abi.EndpointVersions(1, SUBJECT, SUBJECT, GENERATION, 1, now.flags, was.flags, "02:00:00:00:00:01", 0)
    tables["nn_endpoint"].update(abi.AddressKey(ip_address(POD)), entry)
    datapath.revision(GENERATION if switched else GENERATION - 1)
    version = now if switched else was
    rule = expected(version)
    isolated = version.flags & EndpointFlag.ISOLATED_EGRESS
    if not isolated and not version.flags & EndpointFlag.TIERED_EGRESS:
        rule, passes = None, True
    else:
        passes = rule.action is Action.ALLOW if rule else not isolated
    verdict = datapath.sent(IP(src=POD, dst=REMOTE) / UDP(sport=sport, dport=PORT))
    assert verdict == (TC_OK if passes else TC_SHOT)
    (event,) = datapath.events()
    assert event.rule_id == (rule.rule_id if rule else 0), "events name the rule, also of a deny"
    assert event.reason == (0 if passes else -DropReason.POLICY_DENIED)


def _covered(version: Version, place: Place) -> Rule | None:
    """The rule of this place, or of the longest prefix that covers it."""
    tier, peer, form = place
    if version.rules.get(place) is not None:
        return version.rules[place]
    covers = [other for other in FORMS if other[0] < form[0] and other[1] in (0, form[1])]
    covers = [other for other in covers if other[2] in (0, form[2]) or (other[2] == 80 and form[2] in (80, 81))]
    for other in sorted(covers, reverse=True):
        if version.rules.get((tier, peer, other)) is not None:
            return version.rules[tier, peer, other]
    return None


def test_an_established_flow_is_cut_by_a_deny_that_comes(own_datapath: Datapath) -> None:
    datapath = own_datapath
    datapath.reset()
    datapath.endpoint(POD, SUBJECT, number=1, flags=EndpointFlag.TIERED_EGRESS)
    datapath.identity(REMOTE, PEER)
    packet = IP(src=POD, dst=REMOTE) / UDP(sport=1000, dport=PORT)
    assert datapath.sent(packet) == TC_OK
    key = abi.PolicyKey(abi.POLICY_BITS_DIRECTION, SUBJECT, 0, Direction.EGRESS, 0, 0)
    datapath.tables["nn_policy"].update(key, abi.RuleVersions.of(Rule.deny(5, 1), None, 1))
    assert datapath.sent(packet) == TC_OK, "not in force"
    datapath.tables["nn_state"].update(abi.U32(0), abi.State(1, 0))
    assert datapath.sent(packet) == TC_OK, "a known flow is judged again only if recheck_from moves"
    datapath.events()
    datapath.tables["nn_state"].update(abi.U32(0), abi.State(1, 1))
    assert datapath.sent(packet) == TC_SHOT
    assert [event.rule_id for event in datapath.events()] == [5]


def test_an_early_fragment_of_a_subject_with_denies_waits_for_the_first(own_datapath: Datapath) -> None:
    datapath = own_datapath
    datapath.reset()
    datapath.identity(REMOTE, PEER)
    later = IP(src=POD, dst=REMOTE, frag=10, proto=UDP_NUMBER) / bytes(64)
    for flags, verdict in ((0, TC_OK), (EndpointFlag.TIERED_EGRESS, TC_SHOT)):
        datapath.endpoint(POD, SUBJECT, number=1, flags=flags)
        assert datapath.sent(later) == verdict


def test_the_denying_rule_of_a_connection_in_its_middle_is_named(own_datapath: Datapath) -> None:
    datapath = own_datapath
    datapath.reset()
    both = EndpointFlag.TIERED_EGRESS | EndpointFlag.TIERED_INGRESS
    datapath.endpoint(POD, SUBJECT, number=1, flags=both)
    datapath.identity(REMOTE, PEER)
    for direction, number in ((Direction.EGRESS, 4), (Direction.INGRESS, 6)):
        key = abi.PolicyKey(abi.POLICY_BITS_DIRECTION, SUBJECT, PEER, direction, 0, 0)
        datapath.tables["nn_policy"].update(key, abi.always(Rule.deny(number)))
    assert datapath.sent(IP(src=POD, dst=REMOTE) / TCP(sport=1000, dport=PORT, flags="A")) == TC_SHOT
    assert [event.rule_id for event in datapath.events()] == [4]


def test_a_syn_ack_that_a_rule_would_allow_as_an_opener_names_no_rule(own_datapath: Datapath) -> None:
    """It is dropped because it must not open a connection, not because the rule denies."""
    datapath = own_datapath
    datapath.reset()
    both = EndpointFlag.ISOLATED_EGRESS | EndpointFlag.ISOLATED_INGRESS
    datapath.endpoint(POD, SUBJECT, number=1, flags=both)
    datapath.identity(REMOTE, PEER)
    datapath.allow(SUBJECT, PEER, Direction.EGRESS, rule=9)
    assert datapath.sent(IP(src=POD, dst=REMOTE) / TCP(sport=PORT, dport=2000, flags="SA")) == TC_SHOT
    assert [event.rule_id for event in datapath.events()] == [0]
