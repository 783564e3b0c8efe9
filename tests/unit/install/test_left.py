"""What set-up says that it left on the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LEFT = Path(__file__).parents[3] / ".ci" / "left"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout whose set-up has asked for two packages: one that is there, and one that is gone again."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("packages are asked for by dpkg-query")
    (tmp_path / ".ci").mkdir()
    shutil.copy(LEFT, tmp_path / ".ci")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed-packages").write_text("dpkg\nno-such-package\ndpkg\n")
    return tmp_path


def says(checkout: Path, *words: str) -> str:
    return subprocess.run([checkout / ".ci" / "left", *words], capture_output=True, text=True, check=True).stdout


def test_packages_that_are_still_there_and_files_with_their_size(checkout):
    lines = says(checkout).splitlines()
    assert lines[:2] == ["Packages that set-up installed stay: dpkg", "  apt-get remove --autoremove dpkg"]
    assert lines[2].startswith("Files that stay: .venv (")
    assert lines[2].endswith("make clean removes them.")


def test_before_the_record_goes_only_packages_are_told(checkout):
    assert says(checkout, "packages").splitlines()[1:] == ["  apt-get remove --autoremove dpkg"]


@pytest.mark.parametrize("record", ["", "no-such-package\n"])
def test_a_set_up_that_installed_nothing_says_nothing_of_packages(checkout, record):
    (checkout / ".venv" / ".installed-packages").write_text(record)
    assert says(checkout, "packages") == ""
    shutil.rmtree(checkout / ".venv")
    assert "Packages" not in says(checkout)
