"""The picture of a terminal in README.md shows what was recorded, and nothing else."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = "{http://www.w3.org/2000/svg}text"
TSPAN = "{http://www.w3.org/2000/svg}tspan"


@pytest.fixture(scope="module")
def terminal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terminal", DOCS / "terminal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(svg: str) -> list[str]:
    return ["".join(row.itertext()) for row in ElementTree.fromstring(svg).iter(TEXT)]


def test_the_picture_is_made_from_the_record(terminal: ModuleType) -> None:
    assert terminal.PICTURE.read_text() == terminal.render(terminal.RECORD.read_text())


def test_the_record_has_every_command_and_the_picture_every_character(terminal: ModuleType) -> None:
    record = re.sub(r"\033\[[0-9;]*m", "", terminal.RECORD.read_text())
    assert [line[2:] for line in record.splitlines() if line.startswith("$ ")] == list(terminal.COMMANDS)
    assert "".join(shown(terminal.PICTURE.read_text())) == record.replace("\n", "")


def test_a_long_line_is_wrapped_and_an_empty_one_is_kept(terminal: ModuleType) -> None:
    assert shown(terminal.render("a" * (terminal.COLUMNS + 3) + "\n\nb\n")) == ["a" * terminal.COLUMNS, "aaa", "", "b"]


def test_colours_become_classes_and_markup_is_escaped(terminal: ModuleType) -> None:
    svg = terminal.render("a <> \033[31mDROPPED\033[0m & b\n")
    assert [(span.get("class"), span.text) for span in ElementTree.fromstring(svg).iter(TSPAN)] == [
        (None, "a <> "),
        ("red", "DROPPED"),
        (None, " & b"),
    ]


def test_what_a_program_writes_to_its_terminal_is_recorded(terminal: ModuleType) -> None:
    assert (
        terminal.on_a_terminal("test -t 1 && stty size && echo no >&2; false")
        == f"{terminal.ROWS} {terminal.COLUMNS}\nno\n"
    )
