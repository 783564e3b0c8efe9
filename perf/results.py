"""What was measured, in the shape that the JSON file has. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perf import stats

# Values of single samples are kept to this many digits: below the clock's own resolution.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `blocks` are the medians of the blocks, in the order in which they ran; without blocks each sample is
    one. `baseline` are the blocks of direct of the same rounds, `pod` those of pod to pod on the same node."""

    mode: str
    workload: str
    services: int
    metric: str
    unit: str
    samples: tuple[float, ...]
    blocks: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()
    pod: tuple[float, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Keys of interface.md, and beside them: blocks, interval, spread, ratio_interval, ratio_to_pod."""
        blocks = self.blocks or self.samples
        ratios = _ratios(blocks, self.baseline)
        found: dict[str, Any] = {
            "mode": self.mode,
            "workload": self.workload,
            "services": self.services,
            "metric": self.metric,
            "unit": self.unit,
            "samples": [_short(value) for value in self.samples],
            "p50": _short(statistics.median(self.samples)),
            "p99": _short(stats.percentile(self.samples, 99)),
            "ratio_to_direct": _short(statistics.median(ratios)) if ratios else None,
            "blocks": [_short(value) for value in blocks],
            "spread": [_short(min(blocks)), _short(max(blocks))],
            "interval": [_short(value) for value in stats.bootstrap(blocks)],
        }
        if ratios:
            found["ratio_interval"] = [_short(value) for value in stats.bootstrap(ratios)]
            found["ratio_spread"] = [_short(min(ratios)), _short(max(ratios))]
        if self.pod:
            found["ratio_to_pod"] = _short(statistics.median(_ratios(blocks, self.pod)))
        return found | self.extra


def _ratios(blocks: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round: what the machine did in that minute met both."""
    return [mine / other for mine, other in zip(blocks, base, strict=True)] if base else []


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def find(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row whose keys are so."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def slopes(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Microseconds per 1,000 Services of every mode, over what direct took in the same round: least squares."""
    groups: dict[tuple[str, str], list[tuple[float, list[float]]]] = {}
    for row in found:
        if row.metric == "latency" and row.baseline and row.services:
            over = [mine - other for mine, other in zip(row.blocks, row.baseline, strict=True)]
            groups.setdefault((row.mode, row.workload), []).append((row.services / 1000, over))
    return [
        {
            "mode": mode,
            "workload": workload,
            "us_per_1000_services": _short(stats.slope([(x, value) for x, values in places for value in values])),
            "interval": [_short(value) for value in stats.slope_interval(places)],
        }
        for (mode, workload), places in groups.items()
        if mode != "direct" and len({x for x, _ in places}) > 1
    ]
