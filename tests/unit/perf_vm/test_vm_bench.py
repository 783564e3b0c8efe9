"""A report of times under icount becomes one of instructions; what cannot be counted is refused or named."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.errors import BadInputError
from perf import counted, vm_bench

OPTIONS: dict[str, Any] = {
    "modes": "direct, ebpf",
    "services": "1_000,1",
    "workloads": "crr,program",
    "backends": 2,
    "rounds": 10,
    "count": 500,
}


def row(mode: str, metric: str, samples: list[float], unit: str = "us") -> dict[str, Any]:
    return {"mode": mode, "workload": "crr", "services": 1, "metric": metric, "unit": unit, "samples": samples}


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"meta": {"rounds": 2, "notes": [], "skipped": []}, "results": list(rows), "slopes": ["of times"]}


def test_the_tenth_percentile_of_each_block_stands_for_it() -> None:
    direct = row("direct", "latency", [100.0, 100.0, 140.0, 100.0, 100.0, 200.0])
    ebpf = row("ebpf", "latency", [110.0, 110.0, 990.0, 110.0, 110.0, 120.0])
    rate = row("ebpf", "rate", [5.0] * 6, "1/s")
    found = counted.counted(report(direct, ebpf, rate), ["program"])
    assert [entry["metric"] for entry in found["results"]] == ["instructions", "instructions"]
    one = found["results"][1]
    assert one["workload"] == "crr_instructions"
    assert one["unit"] == "thousand instructions"
    assert one["blocks"] == [110.0, 110.0]
    assert one["ratio_to_direct"] == pytest.approx(1.1)
    assert found["slopes"] == []
    assert found["meta"]["skipped"][0]["workload"] == "program"


def test_settings_are_cut_to_what_counting_needs() -> None:
    settings = vm_bench._settings(OPTIONS)
    assert settings["modes"] == ["direct", "ebpf"]
    assert settings["services"] == [1, 1000]
    assert (settings["workloads"], settings["left_out"]) == (["crr"], ["program"])
    assert (settings["rounds"], settings["count"]) == (vm_bench.MOST_ROUNDS, vm_bench.MOST_SAMPLES)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("workloads", "program,update", "only crr, rr, udp are counted"),
        ("services", "many", "--services: many"),
    ],
)
def test_what_cannot_be_counted_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        vm_bench.main({**OPTIONS, key: value, "vm": "6.12", "json_file": None, "quiet": True})
