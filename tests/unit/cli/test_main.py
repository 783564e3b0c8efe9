"""The root command: quick, complete, and with one way to tell of errors."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from nodenet.cli import main as cli
from nodenet.errors import BadInputError, CannotRunError, NodenetError


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_of_the_table_exists(name):
    command = cli.root.get_command(click.Context(cli.root), name)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str()


def test_help_and_version_import_none_of_the_heavy_parts():
    """Nothing that costs time or memory may come in before it is used."""
    code = (
        "import sys\nfrom nodenet.cli.main import root\n"
        "for words in (['--help'], ['--version']):\n"
        "    root.main(words, standalone_mode=False)\n"
        "print(','.join(m for m in ('grpc', 'google.protobuf', 'aiohttp', 'pyroute2', 'scapy', 'yaml')"
        " if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NodenetError("pod a/b: denied"), 1, "nodenet: pod a/b: denied\n"),
        (BadInputError("x.yaml: bad", "see y"), 2, "nodenet: x.yaml: bad\n  hint: see y\n"),
        (CannotRunError("no kernel"), 3, "nodenet: no kernel\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/proc/x"),
            3,
            "nodenet: /proc/x: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (TimeoutError(), 3, "nodenet: TimeoutError\n"),
    ],
)
def test_errors_reach_people_as_one_sentence_and_a_hint(monkeypatch, error, code, text):
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    result = CliRunner().invoke(cli.root, ["anything"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", text)


def test_an_unknown_command_is_bad_usage():
    result = CliRunner().invoke(cli.root, ["dance"])
    assert result.exit_code == 2
    assert "No such command 'dance'" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    result = CliRunner().invoke(cli.root, ["completion", shell])
    assert result.exit_code == 0
    assert "_NODENET_COMPLETE" in result.stdout
