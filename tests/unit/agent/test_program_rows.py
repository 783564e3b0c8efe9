"""`program list`: which program is ours, of another build, or somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodenet.agent import attachment, program_rows
from nodenet.agent.program_rows import Places, programs
from nodenet.bpf.pins import Pins
from nodenet.bpf.programs import ProgramFacts
from tests.unit.compile.build import endpoint

OURS = {"endpoint_egress": 1, "endpoint_ingress": 2}
LOADED = {
    1: ProgramFacts(1, "endpoint_egress", "aa", 4, 1000),
    2: ProgramFacts(2, "endpoint_ingres", "bb", 0, 0),
    # Of an earlier version, and of somebody else.
    3: ProgramFacts(3, "endpoint_ingres", "cc", 9, 9),
    4: ProgramFacts(4, "somebody", "dd", 9, 9),
}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows for a pod's interface with these programs on its two sides."""

    def rows(egress: list[int], ingress: list[int], counted: bool = True) -> list[dict[str, Any]]:
        attached = {"endpoint_egress": egress, "endpoint_ingress": ingress}
        monkeypatch.setattr(attachment, "attached_ids", lambda *_, **__: attached)
        monkeypatch.setattr(attachment, "mechanism", lambda: attachment.Mechanism.TCX)
        monkeypatch.setattr(program_rows, "facts", LOADED.get)
        monkeypatch.setattr(program_rows, "statistics_on", lambda: counted)
        places = Places([endpoint(1, "web", "10.0.0.1")], (), "/cgroup", Pins(Path("/nowhere")))
        return list(programs(places, OURS))

    return rows


def test_ours(listed: Any) -> None:
    first, second = listed([1], [2])
    assert (first["program"], first["state"], first["runs"], first["nanoseconds"]) == ("endpoint_egress", "ok", 4, 250)
    assert (first["pod"], first["hook"]) == ("default/web", "tcx ingress: what the pod sends")
    # The full name, which the kernel does not have.
    assert (second["program"], second["state"], second["runs"]) == ("endpoint_ingress", "ok", 0)
    assert second["nanoseconds"] is None


def test_others_in_the_order_in_which_they_run(listed: Any) -> None:
    rows = listed([4, 1], [3])
    assert [(row["program"], row["state"]) for row in rows] == [
        ("somebody", "foreign"),
        ("endpoint_egress", "ok"),
        ("endpoint_ingres", "other build"),
    ]


def test_one_that_has_gone_meanwhile(listed: Any) -> None:
    assert [row["id"] for row in listed([1, 99], [])] == [1]


def test_without_statistics_nothing_is_counted(listed: Any) -> None:
    assert {(row["runs"], row["nanoseconds"]) for row in listed([1], [2], counted=False)} == {(None, None)}
