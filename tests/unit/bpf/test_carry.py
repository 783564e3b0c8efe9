"""The two copies of a carried map, in memory: whatever either side writes meanwhile, the right value is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nodenet.abi import State, pack_addr
from nodenet.abi import carried as rules
from nodenet.bpf.carry import Transfer, _Fingerprints
from nodenet.tables import Carried, Layout


class Memory:
    """What is asked of RawTable."""

    name = "nn_test"

    def __init__(self, entries: dict[bytes, bytes] | None = None, max_entries: int = 1 << 20) -> None:
        self.entries = dict(entries or {})
        self.max_entries = max_entries

    def chunks(self) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        yield list(self.entries.items())

    def lookup(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        self.entries.update(entries)

    def add(self, key: bytes, value: bytes) -> bool:
        return self.entries.setdefault(key, value) is value

    def remove(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def replace(self, key: bytes, value: bytes) -> bool:
        found = key in self.entries
        if found:
            self.entries[key] = value
        return found


def as_it_is(key: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, value)]


def transfer(old: Memory, new: Memory, carried: Carried = Carried(Layout("", "")), fresh: bool = True) -> Transfer:  # noqa: B008
    return Transfer(old, new, carried, as_it_is, fresh=fresh)  # type: ignore[arg-type]


KEYS = st.integers(0, 5).map(lambda number: bytes([number]))
# Unlike values, so that every write is told apart; None deletes.
WRITES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(min_size=1, max_size=4))))


def write(table: Memory, writes: list[tuple[bytes, bytes | None]]) -> None:
    for key, value in writes:
        if value is None:
            table.entries.pop(key, None)
        else:
            table.entries[key] = value


@given(st.dictionaries(KEYS, st.binary(min_size=1, max_size=4)), WRITES, WRITES)
def test_the_newer_write_wins_and_a_deletion_by_the_new_programs_stays(
    before: dict[bytes, bytes],
    by_old: list[tuple[bytes, bytes | None]],
    by_new: list[tuple[bytes, bytes | None]],
) -> None:
    """The old programs write until the switch, the new ones after it."""
    old, new = Memory(before), Memory()
    copying = transfer(old, new)
    assert copying.first() == len(before)
    assert new.entries == before
    write(old, by_old)
    write(new, by_new)
    at_switch = dict(new.entries)
    copying.last()
    for key in {*before, *dict(by_old), *dict(by_new)}:
        kept, late = at_switch.get(key), old.entries.get(key)
        if late is None or late == before.get(key):
            # The old programs did not write it, or deleted it: nothing changes.
            wanted = kept
        elif kept is None or kept == before.get(key):
            # Only they wrote it (or the new ones had no room for it).
            wanted = late
        else:
            wanted = kept
        assert new.entries.get(key) == wanted


@given(st.dictionaries(KEYS, st.binary(min_size=1)), st.dictionaries(KEYS, st.binary(min_size=1)))
def test_after_a_crash_what_the_new_programs_wrote_stays(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
    target = Memory(new)
    copying = transfer(Memory(old), target, fresh=False)
    assert copying.first() == len(old.keys() - new.keys())
    assert target.entries == {**old, **new}
    assert copying.last() == 0, "nothing was written since"


def test_an_entry_may_become_none_or_several() -> None:
    new = Memory()
    copying = Transfer(
        Memory({b"a": b"1", b"b": b"2"}),  # type: ignore[arg-type]
        new,  # type: ignore[arg-type]
        Carried(Layout("", ""), adapt=lambda value: value + b"!"),
        lambda key, value: [] if key == b"a" else [(key * 2, value), (key * 3, value)],
        fresh=True,
    )
    assert copying.first() == 2
    assert new.entries == {b"bb": b"2!", b"bbb": b"2!"}


def test_fingerprints_tell_key_and_value_apart_from_others() -> None:
    prints = _Fingerprints()
    for number in range(1000):
        prints.add(number.to_bytes(4), b"v")
    assert all(prints.has(number.to_bytes(4), b"v") for number in range(1000))
    assert not any(prints.has(number.to_bytes(4), b"w") for number in range(1000))
    prints.add(b"later", b"w")
    assert prints.has(b"later", b"w")


def ct(last_seen: int, flags: int = 0, **changes: int) -> bytes:
    fields = SimpleNamespace(revision=2, endpoint_id=3, created=5, direction=1)
    fields.__dict__.update(changes)
    values: tuple[Any, ...] = (
        last_seen,
        fields.revision,
        7,
        0,
        fields.direction,
        flags,
        fields.endpoint_id,
        fields.created,
    )
    return rules._CT.pack(*values)


def test_of_two_entries_of_one_connection_the_last_seen_one_is_kept_with_what_either_saw() -> None:
    copied = rules.ct_recheck(ct(10, flags=1 | 8))
    assert rules.ct_merged(copied, ct(11, flags=2, revision=4)) == ct(11, flags=1 | 2, revision=4)
    assert rules.ct_merged(copied, ct(9, flags=4)) == rules.ct_recheck(ct(10, flags=1 | 4 | 8))
    other = ct(11, created=11)
    assert rules.ct_merged(copied, other) == other, "another connection with the same ends"
    assert rules.ct_age(copied) == 10


def test_a_state_of_revisions_has_every_flow_judged_again() -> None:
    """nn_ct is shared with the programs of that version: the generation is higher than every revision in it."""
    for revision, generation in ((0, 1), (6, 7), (0xFFFFFFFF, 0)):
        ((key, value),) = rules.state_of_revision(b"\0\0\0\0", revision.to_bytes(4, "little") + bytes(4))
        assert (key, State.unpack(value)) == (b"\0\0\0\0", State(generation, generation))


def lb_flow(vip: str, last_seen: int) -> tuple[bytes, bytes]:
    pod, service, backend = (pack_addr(ip_address(text)) for text in ("10.0.0.1", vip, "10.0.0.2"))
    key = rules._NAT_ENDS.pack(pod, service, 4000, 80) + bytes((17, 0, 0, 0))
    return key, rules._LB_FLOW.pack(backend, 8080, 7, 1, 2, last_seen, 0, 1, 0)


@given(st.permutations([("10.96.0.1", 5), ("10.96.0.2", 9), ("10.96.0.3", 7)]))
def test_of_flows_with_one_reply_key_only_the_newest_is_converted(flows: list[tuple[str, int]]) -> None:
    """A pod's port called one backend through several addresses of Services."""
    new = Memory()
    old = Memory(dict(lb_flow(*flow) for flow in flows))
    copying = Transfer(old, new, Carried(Layout("", ""), age=rules.nat_age), rules.nat_of_lb_flow, fresh=True)  # type: ignore[arg-type]
    assert copying.first() == 2
    assert new.entries == dict(rules.nat_of_lb_flow(*lb_flow("10.96.0.2", 9)))
    old.entries |= dict([lb_flow("10.96.0.1", 6)])
    assert copying.last() == 0, "written again, but not the newest"
    assert new.entries == dict(rules.nat_of_lb_flow(*lb_flow("10.96.0.2", 9)))
    old.entries |= dict([lb_flow("10.96.0.1", 10)])
    assert copying.last() == 2, "newer than what was copied"
    assert new.entries == dict(rules.nat_of_lb_flow(*lb_flow("10.96.0.1", 10)))
