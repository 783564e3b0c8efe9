"""`lab up` judges the agents' settings before it makes anything; commands of trouble judge their own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nodenet.cli.lab import lab
from nodenet.errors import BadInputError
from nodenet.lab import up


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(up, "check_host", forbidden)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("ct_entries: many", [], "ct_entries: expected int, got 'many'"),
        ("[]", [], "expected keys and values, got list"),
        ("a: [", [], "not a YAML file"),
        ("ct_entries: 50", ["--agent-set", "ct_entries=x"], "ct_entries: expected int, got 'x'"),
        ("", ["--agent-set", "node7:ct_entries=1"], "no node 'node7'"),
    ],
)
def test_bad_settings_stop_the_start(tmp_path: Path, text: str, options: list[str], message: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    done = CliRunner().invoke(lab, ["up", "--name", "x", "--agent-config", str(file), *options])
    assert isinstance(done.exception, BadInputError)
    assert message in str(done.exception)


def test_good_settings_go_on(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("ct_entries: 50")
    done = CliRunner().invoke(lab, ["up", "--name", "x", "--agent-config", str(file), "--agent-set", "flow_buffer=9"])
    assert str(done.exception) == "it went on"


@pytest.mark.parametrize(
    "words",
    [
        ["api", "slow", "--latency", "-1"],
        ["api", "away", "--for", "0"],
        ["api", "gone"],
        ["pod", "status", "x"],
        ["pod", "status", "x", "--ip", "10.0.0.1", "--ips-of", "y"],
        ["pod", "end", "x", "--phase", "Running"],
        ["reboot"],
        ["clock"],
    ],
)
def test_words_that_mean_nothing_are_bad_usage(words: list[str]) -> None:
    assert CliRunner().invoke(lab, ["trouble", *words]).exit_code == 2
