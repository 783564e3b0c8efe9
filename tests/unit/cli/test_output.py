"""Tables, JSON and YAML."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cli.columns import COLUMNS as COLUMNS_OF
from nodenet.cli.output import Column, Format, encode, render, table

ROWS = [
    {"id": 1, "name": "a", "ips": [ip_address("10.0.0.1"), ip_address("fd00::1")], "up": True, "in": {"n": 2}},
    {"id": 20, "name": "bcd", "ips": [], "up": False, "in": {}},
]
COLUMNS = (Column("ID", "id"), Column("NAME", "name"), Column("IPS", "ips"), Column("UP", "up"), Column("N", "in.n"))


def test_a_table():
    assert table(ROWS, COLUMNS).splitlines() == [
        "ID  NAME  IPS               UP   N",
        " 1  a     10.0.0.1,fd00::1  yes  2",
        "20  bcd   -                 no   -",
    ]


def test_no_rows_are_a_head_and_empty_lists():
    assert render([], COLUMNS, Format.TABLE) == "ID  NAME  IPS  UP  N"
    assert render([], COLUMNS, Format.JSON) == "[]"
    assert yaml.safe_load(render([], COLUMNS, Format.YAML)) == []


@pytest.mark.parametrize("output", [Format.JSON, Format.YAML])
def test_json_and_yaml_are_whole(output):
    text = render(ROWS, COLUMNS[:1], output)
    data = json.loads(text) if output is Format.JSON else yaml.safe_load(text)
    assert data[0] == {"id": 1, "name": "a", "ips": ["10.0.0.1", "fd00::1"], "up": True, "in": {"n": 2}}


def test_columns_can_show_in_their_own_way_and_maps_are_readable():
    assert table([{"f": 0.5, "l": {"a": "b"}}], (Column("F", "f", lambda v: f"{v:.0%}"), Column("L", "l"))) == (
        "  F  L\n50%  a=b"
    )
    assert encode({"s": {"b", "a"}}, Format.JSON) == '{\n  "s": [\n    "a",\n    "b"\n  ]\n}'


@given(st.lists(st.fixed_dictionaries({"a": st.text("xyz", max_size=5), "b": st.integers(0, 999)}), max_size=5))
def test_every_row_is_one_line_and_columns_begin_together(rows):
    lines = table(rows, (Column("A", "a"), Column("B", "b"), Column("END", "end"))).splitlines()
    assert len(lines) == len(rows) + 1
    assert len({line.rfind("-" if number else "END") for number, line in enumerate(lines)}) == 1


def test_a_table_of_policy_entries_tells_a_deny_from_an_allow():
    shared = {"subject": 300, "subjectLabels": "app=web", "direction": "ingress", "peerLabels": "anyone", "rule": "r"}
    rows = [
        {**shared, "tier": "Admin", "precedence": 7, "action": "deny"},
        {**shared, "tier": "NetworkPolicy", "precedence": 0, "action": "allow"},
    ]
    head, *lines = table(rows, COLUMNS_OF["policy"]).splitlines()
    for column, values in (("TIER", ["Admin", "NetworkPolicy"]), ("ACTION", ["deny", "allow"])):
        start = head.index(column)
        assert [line[start:].split()[0] for line in lines] == values
    assert "PRECEDENCE" in head
