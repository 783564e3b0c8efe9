"""Fair shares: what is kept fits, an equal part is everybody's, and the answer depends on the input alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.demands import Demand, DemandKey
from netpolicy.types import Direction, IPBlock, NetworkPolicy, Peer, PolicyRef, PortRule, Protocol, Rule, Selector
from nodenet.compile import Compiler, LocalNode, Names, compile_once
from nodenet.compile.shares import LeftOut, Room, fair_level, share_entries, share_prefixes
from nodenet.engine import Engine
from nodenet.model import Namespace, ObjectRef, Pod
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Op, listings
from nodenet.testing import fake_tables
from tests.unit.compile.build import endpoint, pod, store_of

EVERYONE = Selector(())


@given(st.lists(st.integers(0, 100), max_size=10), st.integers(0, 300))
def test_a_level_fits_and_gives_everybody_an_equal_part(demands: list[int], room: int) -> None:
    level = fair_level(demands, room)
    assert sum(min(demand, level) for demand in demands) <= room
    if demands:
        assert level >= min(max(demands), room // len(demands))
    if sum(demands) <= room:
        assert level >= max(demands, default=0)


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    found = []
    for _ in range(draw(st.integers(0, 8))):
        space = draw(st.sampled_from("xyz"))
        sizes = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), max_size=4))
        refs = tuple(PolicyRef(space, name) for name in sorted(sizes))
        found.append(Demand(DemandKey(refs, ()), tuple(sizes[ref.name] for ref in refs), sum(sizes.values())))
    # Equal policies, equal sizes: the resolver gives one object.
    unique = {demand.key: demand for demand in found}
    return [unique[demand.key] for demand in found]


def _kept(demand: Demand, closed: Any) -> int:
    without = closed.get(demand.key, ())
    return sum(size for ref, size in zip(demand.key.policies, demand.sizes, strict=True) if ref not in without)


@given(demands(), st.integers(0, 400))
def test_what_is_kept_fits_and_nobody_below_an_equal_part_loses(found: Sequence[Demand], entries: int) -> None:
    room = Room(entries, 10)
    closed, left_out = share_entries(found, room)
    assert sum(_kept(demand, closed) for demand in found) <= entries
    assert bool(closed) == bool(left_out)
    spaces: dict[str, int] = defaultdict(int)
    for demand in found:
        if demand.total:
            spaces[demand.key.policies[0].namespace] += demand.total
    for demand in found:
        if demand.total and spaces[demand.key.policies[0].namespace] <= entries // len(spaces):
            assert demand.key not in closed
    # The largest go first.
    for demand in found:
        without = closed.get(demand.key, frozenset())
        sizes = dict(zip(demand.key.policies, demand.sizes, strict=True))
        assert max((s for r, s in sizes.items() if r not in without), default=0) <= min(
            (sizes[ref] for ref in without), default=1000
        )
    again, same = share_entries([*reversed(found)], room)
    assert (dict(again), same) == (dict(closed), left_out)


def test_many_subjects_of_one_namespace_do_not_take_the_room_of_another() -> None:
    many = [_one("evil", f"p{number}", 10) for number in range(20)]
    closed, left_out = share_entries([*many, _one("good", "p", 40)], Room(100, 10))
    assert {key.policies[0].namespace for key in closed} == {"evil"}
    assert all(one.limit < one.asked for one in left_out)


def test_many_policies_of_one_subject_leave_it_the_small_ones() -> None:
    refs = tuple(PolicyRef("x", f"p{number}") for number in range(5))
    closed, left_out = share_entries([Demand(DemandKey(refs, ()), (70, 5, 6, 50, 7), 138)], Room(100, 10))
    assert closed == {DemandKey(refs, ()): {refs[0]}}
    assert left_out == (LeftOut(refs[0], "entries of nn_policy", 70, 32, 1),)


def _one(namespace: str, name: str, size: int) -> Demand:
    return Demand(DemandKey((PolicyRef(namespace, name),), ()), (size,), size)


def _blocks(namespace: str, name: str, *cidrs: str, ports: Iterable[int] = ()) -> NetworkPolicy:
    peers = tuple(Peer(block=IPBlock(ip_network(cidr))) for cidr in cidrs)
    rule = Rule(peers, tuple(PortRule(Protocol.TCP, port) for port in ports))
    return NetworkPolicy(namespace, name, EVERYONE, frozenset({Direction.INGRESS}), (rule,))


def test_a_namespace_with_too_many_blocks_loses_its_largest_policies() -> None:
    evil = [_blocks("evil", f"p{n}", *(f"10.{n}.{m}.0/24" for m in range(n + 1))) for n in range(8)]
    left_out = share_prefixes([*evil, _blocks("good", "p", *(f"11.0.{n}.0/24" for n in range(5)))], (), 20)
    assert [one.policy.name for one in left_out] == ["p5", "p6", "p7"]
    assert {one.policy.namespace for one in left_out} == {"evil"}


def test_blocks_that_policies_share_count_once() -> None:
    same = [_blocks("x", f"p{n}", "10.0.0.0/8", "11.0.0.0/8") for n in range(9)]
    assert share_prefixes([*same, _blocks("y", "p", "10.0.0.0/8")], (), 4) == ()


def _compile(room: Room, *objects: Any) -> tuple[Any, Names]:
    local = [o for o in objects if isinstance(o, Pod)]
    attached = [_attached(endpoint(number, p.ref.name, str(p.ips[0])), p.ref) for number, p in enumerate(local, 1)]
    store = store_of(*(Namespace(p.ref.namespace, {}) for p in local), *objects, *attached)
    desired, names = Compiler().compile(store.snapshot(), LocalNode("node1", room=room))
    return desired.tables, names


def _attached(made: Any, ref: ObjectRef) -> Any:
    return replace(made, pod=ref)


def _pod(namespace: str, number: int) -> Pod:
    return replace(pod("p", f"10.0.{number}.1"), ref=ObjectRef(namespace, f"p{number}"), uid=f"{namespace}{number}")


def test_what_is_left_out_isolates_and_its_neighbours_do_not_notice() -> None:
    good, evil = _pod("good", 1), _pod("evil", 2)
    large = _blocks("evil", "large", *(f"10.1.{n}.0/24" for n in range(30)), ports=range(8000, 8010))
    small = _blocks("good", "small", "10.9.0.0/16", ports=(80,))
    tables, names = _compile(Room(100, 100), good, evil, large, small)
    subjects = {labels.namespace: number for number, labels in names.identities.items()}
    assert [key.subject for key in tables["nn_policy"]] == [subjects["good"]]
    assert [str(one.policy.name) for one in names.left_out] == ["large"]
    assert (names.left_out[0].asked, names.left_out[0].limit) == (300, 99)
    assert "evil/large" in str(names.left_out[0])
    assert list(names.isolated_by[subjects["evil"]].values()) == [(PolicyRef("evil", "large"),)]


def test_a_product_of_blocks_and_ports_is_counted_not_made() -> None:
    """1 MB of YAML that asks for half a thousand million entries: making them would end the agent."""
    cidrs = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(20_000)]
    tables, names = _compile(
        Room(500_000, 30_000), _pod("evil", 1), _blocks("evil", "huge", *cidrs, ports=range(1, 25_001))
    )
    assert not tables["nn_policy"]
    assert [one.asked for one in names.left_out] == [500_000_000]


def _selecting(namespace: str, name: str, cidrs: int, ports: int, by_label: bool) -> NetworkPolicy:
    made = _blocks(namespace, name, *(f"10.{n}.0.0/16" for n in range(cidrs)), ports=range(80, 80 + ports))
    return replace(made, ingress=(Rule((Peer(namespaces=EVERYONE),), made.ingress[0].ports),)) if by_label else made


CHANGES = st.one_of(
    st.builds(
        _selecting, st.sampled_from("xy"), st.sampled_from("pq"), st.integers(1, 6), st.integers(1, 3), st.booleans()
    ),
    # Every prefix of the others is an entry of it.
    st.builds(
        lambda space, ports: _blocks(space, "wide", "0.0.0.0/0", ports=range(80, 80 + ports)),
        st.sampled_from("xy"),
        st.integers(1, 3),
    ),
    # A further label set is a further peer of policies that select by label.
    st.builds(
        lambda n, app: replace(_pod("z", 100 + n), labels={"app": app}), st.integers(1, 6), st.sampled_from("abcdef")
    ),
)
TIGHT = st.builds(Room, st.integers(1, 30), st.integers(1, 10))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(CHANGES, min_size=1, max_size=3), max_size=6), TIGHT)
def test_what_is_left_out_does_not_depend_on_the_past(steps: list[list[Any]], room: Room) -> None:
    local = LocalNode("node1", room=room)
    engine = Engine(local, fake_tables(), NoPrograms())
    pods = [_pod("x", 1), _pod("y", 2)]
    attached = [_attached(endpoint(n, p.ref.name, str(p.ips[0])), p.ref) for n, p in enumerate(pods, 1)]
    engine.feed(*listings([*(Namespace(name, {}) for name in "xyz"), *pods, *attached]))
    for changes in steps:
        engine.feed(*(Delta(Op.MODIFIED, change) for change in changes))
        engine.run_once()
        expected, names = compile_once(engine.snapshot(), local)
        found = engine.current
        assert {n: dict(t.items()) for n, t in found.desired.tables.items()} == {
            n: dict(t.items()) for n, t in expected.tables.items()
        }
        assert found.names.left_out == names.left_out
        assert len(expected.tables["nn_policy"]) <= room.entries
        assert len(expected.tables["nn_cidr"]) <= room.prefixes


def test_prefixes_of_one_namespace_do_not_make_rules_of_another_too_large() -> None:
    """Each prefix inside a block is an entry of the block's rule, whoever named it."""
    good, evil = _pod("good", 1), _pod("evil", 2)
    wide = _blocks("good", "wide", "0.0.0.0/0", ports=(80, 81))
    cuts = _blocks("evil", "cuts", *(f"10.{n}.0.0/16" for n in range(200)), ports=(80,))
    tables, names = _compile(Room(300, 1000), good, evil, wide, cuts)
    assert [one.policy.name for one in names.left_out] == ["cuts"]
    subjects = {labels.namespace: number for number, labels in names.identities.items()}
    assert {key.subject for key in tables["nn_policy"]} == {subjects["good"]}
    assert len(tables["nn_cidr"]) == 1


def test_who_asks_for_too_much_itself_costs_others_no_prefix() -> None:
    good, evil = _pod("good", 1), _pod("evil", 2)
    many = _blocks("good", "many", *(f"11.{n}.0.0/16" for n in range(50)), ports=(80,))
    large = _blocks("evil", "large", "10.0.0.0/8", ports=range(80, 580))
    tables, names = _compile(Room(300, 1000), good, evil, many, large)
    assert [one.policy.name for one in names.left_out] == ["large"]
    assert len(tables["nn_policy"]) == 50
    assert len(tables["nn_cidr"]) == 51
