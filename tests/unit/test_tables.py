"""The registry of maps agrees with itself, with the configuration, with its readers and with docs/maps.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet import tables
from nodenet.abi.slots import WAYS
from nodenet.compile import LocalNode, compile_once
from nodenet.config import Config, parse
from nodenet.errors import BadInputError
from nodenet.store import Snapshot
from nodenet.tables import Group, MapType, Writer, memory

ROOT = Path(__file__).parents[2]
# The kernel keeps 15 characters of a map's name.
NAME = re.compile(r"nn_[a-z_]{1,12}")
# Words of docs/maps.md.
TYPES = {
    MapType.HASH: "hash",
    MapType.ARRAY: "array",
    MapType.PERCPU_ARRAY: "per-CPU array",
    MapType.LRU_HASH: "LRU hash",
    MapType.LPM_TRIE: "LPM",
    MapType.RINGBUF: "ring buffer",
    MapType.SK_STORAGE: "socket storage",
}
LOOP = (Writer.COMPILER, Writer.LOOP)


def test_names_are_what_the_kernel_keeps() -> None:
    assert all(NAME.fullmatch(name) for name in tables.MAPS)


def test_what_the_compiler_fills_is_what_it_returns() -> None:
    desired, _ = compile_once(Snapshot(), LocalNode("n1"))
    assert set(desired.tables) == set(tables.filled_by(Writer.COMPILER))


def test_every_map_of_the_compiler_has_its_places_in_the_order_of_writes() -> None:
    for group in Group:
        planned = tables.steps(group)
        wanted = [one for one in tables.MAPS.values() if one.group is group and one.writer is Writer.COMPILER]
        assert sorted(planned) == sorted(tables.Step(one.name, deletes) for one in wanted for deletes in (False, True))
        orders = [one.order for one in wanted if one.order]
        places = [place for order in orders for place in (order.sets, order.deletes)]
        assert sorted(places) == list(range(1, len(places) + 1)), "no two steps share a place"
    assert all((one.group is not None) == (one.writer in LOOP) for one in tables.MAPS.values())


def test_maps_of_the_loop_have_records_and_what_is_compiled_is_not_carried() -> None:
    for one in tables.MAPS.values():
        assert one.records or one.writer not in LOOP
        assert one.carried is None or one.writer in (Writer.PROGRAMS, Writer.LOOP)
        assert bool(one.full) == (one.type not in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.SK_STORAGE)), one.name


def test_the_keys_of_sizes_are_those_of_the_configuration() -> None:
    assert set(tables.SIZE_KEYS) == {field.name for field in fields(Config) if field.name.endswith("_entries")}
    default = {one.name: one.size.entries for one in tables.MAPS.values() if one.size.key}
    declared = {key: memory.map_of(key).size.entries for key in tables.SIZE_KEYS}
    assert tables.sizes(declared) == default
    small = {**declared, **Config("n1", ct_entries=40, policy_entries=5).entries}
    found = tables.sizes(small)
    assert found == {**default, "nn_ct": 40, "nn_ct_slot": 2, "nn_nat": 80, "nn_nat_slot": 1, "nn_policy": 5}


@given(st.integers(40, 1 << 24))
def test_connections_have_more_entries_than_slots(entries: int) -> None:
    """Else a full table drops new flows while slots are free, and nothing is evicted. Fewer than 40 are refused."""
    configured = parse({"node_name": "n1", "ct_entries": entries}, "test").entries
    sizes = tables.sizes({**dict.fromkeys(tables.SIZE_KEYS, 1), **configured})
    assert sizes["nn_ct"] > WAYS * sizes["nn_ct_slot"]
    assert sizes["nn_nat"] > 4 * WAYS * sizes["nn_nat_slot"], "a flow from outside may have four entries"
    with pytest.raises(BadInputError, match="ct_entries: expected at least 40, got 39"):
        parse({"node_name": "n1", "ct_entries": 39}, "test")


GIB = 1 << 30


def test_sizes_follow_the_memory_between_their_limits() -> None:
    for key in tables.SIZE_KEYS:
        declared = memory.map_of(key).size.entries
        assert memory.entries(key, 16 * GIB, 0.02) == declared, "a node with 16 GiB has the declared sizes"
        assert memory.entries(key, 2 * GIB, 0) == declared
        assert memory.entries(key, 32 * GIB, 0.02) == (declared if key == "endpoint_entries" else 2 * declared)
        assert memory.entries(key, 32 * GIB, 0.01) == declared
    for key, limits in memory.FOLLOWING.items():
        assert memory.entries(key, 1 << 20, 0.02) == limits.floor >= tables.least_entries(key)
        assert memory.entries(key, 1 << 50, 0.02) == limits.cap


@given(st.integers(1 << 28, 1 << 44), st.floats(0.001, 0.5))
def test_more_memory_never_makes_a_map_smaller(bytes_: int, share: float) -> None:
    for key, limits in memory.FOLLOWING.items():
        found = memory.entries(key, bytes_, share)
        assert limits.floor <= found <= memory.entries(key, 2 * bytes_, share) <= limits.cap
        assert found % 1024 == 0


def test_the_documentation_has_the_limits() -> None:
    text = (ROOT / "docs" / "maps.md").read_text()
    for key, limits in memory.FOLLOWING.items():
        row = f"| `{key}` | {limits.floor} | {memory.map_of(key).size.entries} | {limits.cap} |"
        assert row in text, row


def literals(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if (
                id(node) not in docstrings
                and isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and NAME.fullmatch(node.value)
            ):
                yield str(path.relative_to(ROOT)), node.value


# A map and a function of the tracer's own program, and a symbol of the CNI executable.
FOREIGN = {"nn_drops", "nn_on_drop", "nn_frozen"}


@pytest.mark.parametrize("folder", ["nodenet", "perf"])
def test_every_literal_name_is_a_declared_map(folder: str) -> None:
    known = {*tables.MAPS, *tables.SUCCESSORS, *FOREIGN}
    unknown = [(path, name) for path, name in literals(folder) if name not in known]
    assert unknown == []


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of docs/maps.md, without its head."""
    section = (ROOT / "docs" / "maps.md").read_text().partition(f"{heading}\n")[2]
    table = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_the_page_lists_every_map_with_its_type_and_writer() -> None:
    listed = [(row[0].strip("` "), row[1], row[3]) for row in rows("# Maps")]
    words = [
        (
            one.name,
            TYPES[one.type]
            + (", 1" if one.type in (MapType.ARRAY, MapType.PERCPU_ARRAY) and one.size.entries == 1 else ""),
            "reconcile loop" if one.writer in LOOP else "programs",
        )
        for one in tables.MAPS.values()
    ]
    assert [(name, kind, "programs" if "programs" in by else by) for name, kind, by in listed] == words


def sized(size: tables.Size) -> str:
    if not size.key:
        return "–"
    return (
        f"`{size.key}`"
        + (f" × {size.times}" if size.times > 1 else "")
        + (f" / {size.share}" if size.share > 1 else "")
    )


def test_the_page_lists_every_size() -> None:
    words = [
        [
            f"`{one.name}`",
            str(one.size.entries),
            sized(one.size),
            one.full,
        ]
        for one in tables.MAPS.values()
        if one.full
    ]
    shown = "\n".join("| " + " | ".join(line) + " |" for line in words)
    assert rows("## Sizes") == words, f"docs/maps.md, Sizes, must have these lines:\n{shown}"


def test_the_page_names_what_is_carried() -> None:
    sentence = (ROOT / "docs" / "maps.md").read_text().partition("Carried are")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", sentence) == [one.name for one in tables.MAPS.values() if one.carried]
