"""Keys of the agents' configuration on the command line of `lab up`."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.config import parse
from nodenet.errors import BadInputError
from nodenet.lab import files, layout, settings

PLAN = layout.plan("x", 2, layout.IPFamily.IPV4)


def configured(*options: str, **file: Any) -> dict[str, Any]:
    state = files.LabState(PLAN, 24, settings.parse(options, file, PLAN))
    return {node.name: parse(files.agent_config(state, node), "agent.yaml") for node in PLAN.nodes}


def test_values_have_the_type_that_the_agent_reads() -> None:
    found = configured(
        "ct_entries=4096", "flow_events=false", "resync_seconds=5", "cluster_name=7", "cache_dir=/c", "hubble_address="
    )["node2"]
    assert (found.ct_entries, found.flow_events, found.resync_seconds) == (4096, False, 5.0)
    assert (found.cluster_name, str(found.cache_dir), found.hubble_address) == ("7", "/c", "")


def test_one_node_wins_over_all_and_the_last_word_over_the_file() -> None:
    found = configured("node2:ct_entries=40", "ct_entries=50", "node2:ct_entries=60", ct_entries=100, flow_buffer=9)
    assert [found[node].ct_entries for node in ("node1", "node2")] == [50, 60]
    assert found["node2"].flow_buffer == 9


def test_without_settings_the_cluster_is_the_lab() -> None:
    assert configured()["node1"].cluster_name == "x"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ct_entries=many", "agent of node1: ct_entries: expected int, got 'many'"),
        ("ct_entries=0", "ct_entries: expected at least 40, got 0"),
        ("flow_events=7", "flow_events: expected bool, got 7"),
        ("ct_entrys=1", "ct_entrys: unknown key"),
        ("node2:ct_entries=x", "agent of node2: ct_entries"),
        ("node3:ct_entries=1", "no node 'node3'"),
        ("run_dir=/tmp/x", "run_dir: the lab sets this key itself"),
        ("node_name=x", "node_name: the lab sets"),
        ("ct_entries", "expected [NODE:]KEY=VALUE"),
        ("=1", "expected [NODE:]KEY=VALUE"),
        (":ct_entries=1", "expected [NODE:]KEY=VALUE"),
        ("ct_entries=[", "not a YAML value"),
    ],
)
def test_bad_settings_name_the_key_and_what_was_expected(option: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        settings.parse([option], {}, PLAN)
    assert message in str(caught.value)


def test_they_survive_the_labs_file() -> None:
    found = settings.parse(["ct_entries=50", "node1:flow_buffer=7"], {}, PLAN)
    assert settings.from_json(settings.to_json(found)) == found
