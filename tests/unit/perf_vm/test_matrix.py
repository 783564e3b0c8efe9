"""The kernel matrix's table and exit status."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from nodenet.errors import CannotRunError
from perf import kernels
from perf.kernels import PARTS, PROGRAMS, Row

GOOD = {part: {"one": "", "two": ""} for part in PARTS}


def good(name: str = "6.12") -> Row:
    return Row(name, f"{name}.1-cloud", boots=True, programs=PROGRAMS, checks=GOOD, seconds=9.0)


def test_a_row_is_good_only_with_everything() -> None:
    assert good().ok
    assert not Row("6.12", boots=True, programs=PROGRAMS - 1, checks=GOOD).ok
    assert not Row("6.12", boots=True, programs=PROGRAMS, checks=GOOD, error="OSError: no").ok
    assert not Row("6.12", boots=True, programs=PROGRAMS, checks={**GOOD, "path": {}}).ok
    assert not Row("6.12", boots=True, programs=PROGRAMS, checks={**GOOD, "policy": {"x": "AssertionError"}}).ok


def test_table_tells_what_is_missing_and_wrong() -> None:
    lacking = Row(
        "5.10",
        "5.10.0-1",
        boots=True,
        programs=PROGRAMS,
        missing=({"feature": "helper set_retval", "without": "EPERM"},),
        checks={**GOOD, "policy": {"denied": "AssertionError: it arrived", "allowed": ""}},
    )
    text = kernels.table([lacking, good(), Row("6.18", skipped="no mirror")])
    lines = text.splitlines()
    assert lines[1].split()[:4] == ["5.10", "5.10.0-1", "yes", f"{PROGRAMS}/{PROGRAMS}"]
    assert "1/2" in lines[1]
    assert lines[1].endswith("FAILED")
    assert lines[2].endswith("ok")
    assert lines[3].endswith("skipped")
    assert "5.10: no helper set_retval: EPERM" in lines
    assert "5.10: policy: denied: AssertionError: it arrived" in lines
    assert "6.18: skipped: no mirror" in lines


@pytest.mark.parametrize(
    ("rows", "status"),
    [([good("5.10"), good()], 0), ([good("5.10"), Row("6.12", "6.12.1", boots=True, error="x")], 1)],
)
def test_exit_status_and_json(rows: list[Row], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run_matrix", lambda wanted, **options: rows)
    result = CliRunner().invoke(kernels.kernels, ["5.10", "6.12", "-o", "json"])
    assert result.exit_code == status
    found = json.loads(result.stdout)
    assert [row["ok"] for row in found] == [row.ok for row in rows]


def test_no_tried_kernel_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run_matrix", lambda wanted, **options: [Row("6.12", skipped="no mirror")])
    result = CliRunner().invoke(kernels.kernels, ["6.12"])
    assert isinstance(result.exception, CannotRunError)
    assert "no mirror" in str(result.exception)


def test_matrix_needs_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cannot_run", lambda: "virtual machines need qemu")
    with pytest.raises(CannotRunError, match="need qemu"):
        kernels.run_matrix(["6.12"])
