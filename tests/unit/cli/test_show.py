"""Lists of several agents of which one is silent."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from nodenet.cli import main as cli
from nodenet.cli import show
from nodenet.cli.target import Target
from nodenet.errors import CannotRunError


@pytest.mark.parametrize(("dead", "code"), [((), 0), (("node1",), 1), (("node1", "node2"), 3)])
def test_those_that_answer_are_printed_and_the_missing_one_is_named(
    monkeypatch: pytest.MonkeyPatch, dead: tuple[str, ...], code: int
) -> None:
    async def rows(where: list[Target], *_: object) -> list[Any]:
        return [CannotRunError("no agent") if one.node in dead else [{"ip": f"of-{one.node}"}] for one in where]

    monkeypatch.setattr(show, "targets", lambda _: [Target("a", "node1"), Target("b", "node2")])
    monkeypatch.setattr(show, "gather_rows", rows)
    done = CliRunner().invoke(cli.root, ["ipcache", "list", "--lab", "x"])
    assert done.exit_code == code
    assert ("of-node2" in done.stdout) is ("node2" not in dead)
    assert ("node1 is missing: no agent" in done.stderr) is (code == 1)
