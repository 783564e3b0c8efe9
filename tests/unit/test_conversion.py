"""Which layouts of a carried map can be read, and what becomes of their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodenet import tables
from nodenet.tables import Carried, Layout, Previous
from nodenet.tables.conversion import by_name, converter

NOW = Layout("addr:4 pad:4", "seen:4 flags:1 pad:1 port:2")


def convert(carried: Carried, old: Layout | None, value: bytes) -> bytes | None:
    found = converter(carried, old)
    made = list(found(b"key", value)) if found else []
    return made[0][1] if made else None


def test_the_same_layout_is_copied_as_it_is() -> None:
    assert convert(Carried(NOW), NOW, b"anything") == b"anything"


def test_a_declared_layout_has_its_converter() -> None:
    old = Layout("addr:4", "seen:2")
    carried = Carried(NOW, (Previous(old, lambda key, value: [(key, value * 4)]),))
    assert convert(carried, old, b"ab") == b"abababab"


def test_other_layouts_are_not_read() -> None:
    for old in (
        None,
        Layout("addr:4", NOW.value),
        Layout(NOW.key, "seen:4 flags:1 pad:3"),
        Layout(NOW.key, "seen:8 flags:1 pad:1 port:2"),
        Layout(NOW.key, "used:4 flags:1 pad:1 port:2"),
    ):
        assert converter(Carried(NOW), old) is None, old


def test_a_later_layout_is_read_by_the_names_of_its_members() -> None:
    later = Layout(NOW.key, "port:2 more:8 seen:4 pad:1 flags:1")
    assert convert(Carried(NOW), later, b"PP........SSSS_F") == b"SSSSF\0PP"


def test_what_an_earlier_layout_did_not_have_is_0() -> None:
    assert list(by_name("seen:4 pad:4", NOW.value)(b"", b"SSSSpppp")) == [(b"", b"SSSS\0\0\0\0")]


MEMBERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", "pad", "pad2"]), st.integers(1, 8)),
    min_size=1,
    unique_by=lambda m: m[0],
)


def text(members: list[tuple[str, int]]) -> str:
    return " ".join(f"{name}:{size}" for name, size in members)


@given(MEMBERS, MEMBERS, st.data())
def test_each_member_keeps_its_bytes_wherever_it_stands(
    old: list[tuple[str, int]], new: list[tuple[str, int]], data: st.DataObject
) -> None:
    values = {member: data.draw(st.binary(min_size=member[1], max_size=member[1])) for member in old}
    ((_, made),) = by_name(text(old), text(new))(b"k", b"".join(values.values()))
    wanted = b"".join(
        bytes(member[1]) if member[0].startswith("pad") else values.get(member, bytes(member[1])) for member in new
    )
    assert made == wanted


def test_every_previous_layout_of_the_registry_gives_records_of_today() -> None:
    for one in tables.MAPS.values():
        for previous in one.carried.previous if one.carried else ():
            sizes = [sum(int(m.rpartition(":")[2]) for m in part.split()) for part in previous.layout]
            made = list(previous.convert(bytes(sizes[0]), bytes(sizes[1])))
            now = [sum(int(m.rpartition(":")[2]) for m in part.split()) for part in one.carried.layout]  # type: ignore[union-attr]
            assert all([len(part) for part in entry] == now for entry in made), one.name
