"""Sizes of maps: configured, kept or computed, and named before a map is full."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nodenet import tables
from nodenet.agent import pressure, sizes
from nodenet.bpf.pins import Pins
from nodenet.config import Config, Share, parse
from nodenet.errors import BadInputError
from nodenet.tables import memory

GIB = 1 << 30
KEYS = tables.SIZE_KEYS


class Node:
    """A node's pinned maps, as folders: their sizes are what the last start chose."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pins = Pins(root)
        self.pins.maps.mkdir(parents=True)
        self._entries: dict[str, int] = {}
        monkeypatch.setattr(sizes, "map_info", lambda path: SimpleNamespace(max_entries=self._entries[path.name]))

    def start(self, gib: int, *, stores: bool = True, **settings: object) -> dict[str, int]:
        config = parse({"node_name": "n1", **settings}, "test")
        found = sizes.choose(config, self.pins, gib * GIB)
        for key, entries in found.items():
            self.pins.map(memory.map_of(key).name).touch()
            self._entries[memory.map_of(key).name] = entries
        if stores:
            sizes.store(config, self.pins, found)
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_a_first_start_computes_and_a_restart_keeps(node: Node) -> None:
    first = node.start(2)
    assert first["ct_entries"] == memory.FOLLOWING["ct_entries"].floor < tables.CT.size.entries
    assert node.start(2) == first
    assert node.start(64) == first, "the node got more memory: a restart resizes nothing"


def test_another_setting_computes_again(node: Node) -> None:
    first = node.start(64)
    assert node.start(64, map_memory="1%") == {key: memory.entries(key, 64 * GIB, 0.01) for key in KEYS}
    assert node.start(64) == first
    assert node.start(64, map_memory=0) == {key: memory.map_of(key).size.entries for key in KEYS}


def test_a_configured_size_counts_and_the_others_are_kept(node: Node) -> None:
    first = node.start(64)
    assert node.start(2, ct_entries=4096) == {**first, "ct_entries": 4096}
    # Without the key the size is computed again, only this one.
    assert node.start(2) == {**first, "ct_entries": memory.entries("ct_entries", 2 * GIB, memory.DEFAULT_SHARE)}


def test_maps_of_a_version_that_stored_nothing_are_kept(node: Node) -> None:
    old = node.start(16, stores=False)
    assert node.start(64) == old
    assert node.start(64) == old


def test_two_settings_of_a_key_count_as_none(node: Node) -> None:
    """After a crash while they were stored."""
    first = node.start(64)
    (node.pins.root / "sizes" / "ct_entries-1").mkdir()
    assert node.start(16) == {**first, "ct_entries": tables.CT.size.entries}
    assert node.pins.sizes() == sizes.settings(Config("n1"))


@pytest.mark.parametrize(("given", "share"), [("2%", 0.02), (0.02, 0.02), ("0.5 %", 0.005), (0, 0.0), ("50%", 0.5)])
def test_a_share_is_a_number_or_a_percentage(given: object, share: float) -> None:
    found = parse({"node_name": "n1", "map_memory": given}, "test").map_memory
    assert found == pytest.approx(share)
    assert isinstance(found, Share)


@pytest.mark.parametrize("given", ["51%", 2, -0.1, "much", True, None, "nan", "inf%", ["1%"]])
def test_other_shares_are_refused(given: object) -> None:
    with pytest.raises(BadInputError, match="map_memory: expected a share of the node's memory"):
        parse({"node_name": "n1", "map_memory": given}, "test")


def test_nearly_full_maps_are_named_with_what_follows() -> None:
    limits = dict.fromkeys(tables.KEYED, 100)
    held = {"nn_frontend": dict.fromkeys(range(90)), "nn_backend": dict.fromkeys(range(89)), "nn_state": {0: 0}}
    (problem,) = pressure.problems(held, limits)
    assert problem == (
        "map nn_frontend is nearly full: 90 of 100 entries; then a Service that does not fit stays as it was, whole; "
        "set a larger service_entries or map_memory"
    )
    (shared,) = pressure.problems({"nn_policy": dict.fromkeys(range(45))}, limits)
    assert shared.startswith("map nn_policy is nearly full: 45 of 50 entries"), "half is room for changes"
