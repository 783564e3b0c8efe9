"""The workloads `paths` and `packets`, short: every row is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import packets, paths

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


def bench(folder: Path, workload: str, modes: str) -> dict[str, Any]:
    report = folder / "report.json"
    command = [sys.executable, "-m", "nodenet", "bench", "-q", "--workloads", workload, "--modes", modes]
    command += ["--rounds", "2", "--count", "10", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert all(row["mode"] in done.stdout and row["metric"] in done.stdout for row in found["results"])
    return found


def test_paths(tmp_path: Path) -> None:
    """Every path of both modes, with its ratio to a pod; a mode that cannot run here is named."""
    report = bench(tmp_path, "paths", "ebpf,nftables,ipvs")
    here = ["ebpf", "nftables", *(["ipvs"] if Path("/proc/net/ip_vs").exists() else [])]
    names = [way.name for way in paths.PATHS]
    services = {(mode, name + family) for mode in here for name in names for family in ("", "-ipv6")}
    rows = {(row["mode"], row["metric"]): row for row in report["results"]}
    assert services <= set(rows)
    assert all(rows[key]["ratio_to_direct"] > 0 and len(rows[key]["blocks"]) == 2 for key in services)
    pods = {metric for _, metric in rows if metric.startswith("pod-")}
    assert pods == {f"pod-{base}{family}" for base in ("near", "far", "outside-far") for family in ("", "-ipv6")}
    if "ipvs" not in here:
        (entry,) = report["meta"]["skipped"]
        assert entry["mode"] == "ipvs"
        assert "no IPVS" in entry["reason"]


def test_packets(tmp_path: Path) -> None:
    rows = bench(tmp_path, "packets", "ebpf")["results"]
    wanted = {f"{way.metric} {packet}" for way in packets.ways() for packet in packets.PACKETS}
    assert {row["metric"] for row in rows} == wanted
    assert all(row["p50"] > 0 and len(row["samples"]) == 20 for row in rows)
