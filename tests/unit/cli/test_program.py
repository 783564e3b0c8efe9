"""What is printed for pasting can be pasted."""

from __future__ import annotations

import sys

import pytest

from nodenet.cli import program


def test_on_path_it_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda _: "/usr/bin/nodenet")
    assert program.pasteable("nodenet lab up starts one") == "nodenet lab up starts one"


def test_elsewhere_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nodenet").touch()
    monkeypatch.setattr(program.shutil, "which", lambda _: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    text = "export K=$(nodenet lab kubeconfig); /run/nodenet lab; nodenet.x; nodenet lab list"
    assert program.pasteable(text) == (
        "export K=$(bin/nodenet lab kubeconfig); /run/nodenet lab; nodenet.x; bin/nodenet lab list"
    )
    (tmp_path / "bin" / "nodenet").unlink()
    assert program.program() == f"{tmp_path}/bin/python -m nodenet"
