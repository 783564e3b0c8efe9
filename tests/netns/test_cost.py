"""perf.cost: the programs of two trees measured in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf import cost

pytestmark = pytest.mark.kernel


def test_a_tree_beside_itself(tmp_path: Path) -> None:
    report = tmp_path / "cost.json"
    command = [sys.executable, "-m", "perf.cost", "--base", str(cost.ROOT), "--rounds", "3", "--count", "500"]
    done = subprocess.run(
        [*command, "--json", str(report)], cwd=cost.ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads(report.read_text())["programs"]
    places = [f"IPv{version} {way}" for version in (4, 6) for way in ("egress", "ingress", "same node")]
    kinds = ("established TCP", "SYN", "first datagram")
    assert set(programs) == {f"{place}, {kind}" for place in places for kind in kinds}
    assert all(entry["base"] > 0 and entry["new"] > 0 for entry in programs.values())
    assert all(name in done.stdout for name in programs)


def test_a_tree_without_programs_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.cost", "--base", str(tmp_path), "--rounds", "2", "--count", "100"]
    (tmp_path / "nodenet").mkdir()
    (tmp_path / "nodenet" / "__init__.py").touch()
    done = subprocess.run(command, cwd=cost.ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 3
    assert "a worker ended" in done.stderr
