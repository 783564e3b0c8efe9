"""The documentation's page: what is between its marks comes from reports, what is outside stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from perf.results import Result, slopes

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from perf import publish

META: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "kernel": "6.18",
    "cpu": "a CPU",
    "cpus": 2,
    "load": [0.1, 0.1, 0.1],
    "pinned_cpu": 0,
    "backends_per_service": 1,
    "epochs": 1,
    "rounds": 2,
    "samples_per_block": 1,
    "seconds": 12,
    "tools": {},
    "noise": {"stolen": 0.0},
    "mitigations": {},
    "notes": [],
    "skipped": [{"mode": "nftables", "workload": "program", "services": 1000, "reason": "not finished after 60 s"}],
}


def full() -> dict[str, Any]:
    base = (10.0, 10.0)
    found = [Result("direct", "crr", n, "latency", "us", base, base, base) for n in (1, 1000)]
    found += [
        Result(mode, "crr", n, "latency", "us", (13.0 + n / 1000,) * 2, (13.0 + n / 1000,) * 2, base)
        for mode, n in (("ebpf-packet", 1), ("ebpf-packet", 1000), ("nftables", 1))
    ]
    found.append(Result("ebpf-packet", "program", 1000, "seconds", "s", (0.05,)))
    found.append(Result("ebpf-packet", "update", 1, "first_connection", "ms", (1.25,)))
    made = {"meta": META, "results": [row.as_json() for row in found], "slopes": slopes(found)}
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_in_short_says_what_there_is_and_what_was_left_out() -> None:
    lines = {line[0]: line[1:] for line in publish.in_short(full())}
    assert lines[""] == ["ebpf-packet", "nftables"]
    assert lines["short connection, to direct, at 1 Service"] == ["1.300 (1.300 - 1.300)", "1.300 (1.300 - 1.300)"]
    assert lines["short connection, to direct, at 1,000 Services"][1] == "left out"
    assert lines["growth, us per 1,000 Services"] == ["+1.000 (1.000 - 1.000)", ""]
    assert lines["1,000 Services from empty"] == ["50.0 ms", "left out"]
    assert lines["one endpoint changes, first connection, at 1"] == ["1.25 ms", ""]


def test_page_keeps_what_is_written_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, run = tmp_path / "bench.md", tmp_path / "full.json"
    page.write_text(f"By hand.\n\n{publish.BEGIN}\nold\n{publish.END}\n\nThe end.\n")
    run.write_text(json.dumps(full()))
    monkeypatch.setattr(sys, "argv", ["publish", str(run), "--again", str(run), "--docs", str(tmp_path)])
    assert publish.main() == 0
    first = page.read_text()
    assert first.startswith("By hand.\n")
    assert first.endswith(f"{publish.END}\n\nThe end.\n")
    assert "old" not in first
    assert "figures are the same within their spread" in first
    drawn = sorted(path.name for path in (tmp_path / "img").iterdir())
    assert "latency-crr.svg" in drawn
    assert all(f"(img/{name})" in first for name in drawn)
    assert publish.main() == 0
    assert page.read_text() == first
    page.write_text("no marks")
    assert publish.main() == 2
    assert "marks are missing" in capsys.readouterr().err
