"""The measured results, in the structure of the JSON file. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from perf import stats

# Single samples are stored with this many digits, which is below the clock's resolution.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `blocks`: medians of the blocks in the order of their runs; without blocks each sample counts as one.
    `baseline`: figures of `direct` in the same rounds. `pod`: figures of pod to pod on the same node. `parts`: the
    number of blocks of each epoch, which has its own set-up; () if all are of one epoch."""

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
    parts: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.mode, self.workload, self.services, self.metric

    def ratios(self) -> list[float]:
        """The ratios to `direct` of each round. In one round the state of the machine affects both equally."""
        return _ratios(self.blocks or self.samples, self.baseline)

    def by_epoch(self, values: Sequence[float]) -> list[Sequence[float]]:
        """Group values by the epoch in which they were measured. Their number is a multiple of the number of blocks."""
        parts = self.parts or (len(self.blocks or self.samples),)
        each = len(values) // sum(parts)
        ends = list(accumulate(part * each for part in parts))
        return [values[end - part * each : end] for end, part in zip(ends, parts, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """The documented keys (interface.md), and also: blocks, interval, spread, ratio_interval, ratio_to_pod,
        epochs."""
        blocks, ratios = self.blocks or self.samples, self.ratios()
        epochs = self.by_epoch(self.samples)
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
            "epochs": [_short(statistics.median(epoch)) for epoch in epochs],
        }
        interval, confidence = stats.spread(epochs, blocks)
        found |= {"interval": [_short(value) for value in interval], "confidence": round(confidence, 3)}
        if ratios:
            by_epoch = self.by_epoch(ratios)
            found["ratio_interval"] = [_short(value) for value in stats.spread(by_epoch, ratios).interval]
            found["ratio_spread"] = [_short(min(ratios)), _short(max(ratios))]
            found["ratio_epochs"] = [_short(statistics.median(epoch)) for epoch in by_epoch]
        if self.pod:
            found["ratio_to_pod"] = _short(statistics.median(_ratios(blocks, self.pod)))
        return found | self.extra


def merge(epochs: Iterable[Iterable[Result]]) -> list[Result]:
    """Combine equal figures of several epochs into one each, in the order of their first occurrence."""
    found: dict[tuple[str, str, int, str], Result] = {}
    for epoch in epochs:
        for row in epoch:
            row = row if row.parts else replace(row, parts=(len(row.blocks or row.samples),))
            old = found.get(row.key)
            found[row.key] = _joined(old, row) if old else row
    return list(found.values())


def _joined(old: Result, new: Result) -> Result:
    return replace(
        old,
        samples=old.samples + new.samples,
        blocks=old.blocks + new.blocks,
        baseline=old.baseline + new.baseline,
        pod=old.pod + new.pod,
        parts=old.parts + new.parts,
        extra={key: _sum(old.extra.get(key), value) for key, value in new.extra.items()},
    )


def _sum(old: Any, new: Any) -> Any:
    """Add counts over epochs. Other values are the same in all epochs."""
    return [first + second for first, second in zip(old, new, strict=True)] if isinstance(new, list) else new


def _ratios(blocks: Sequence[float], base: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(blocks, base, strict=True)] if base else []


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def find(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row with these values, or None."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def slopes(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Growth of each mode in microseconds per 1,000 Services, relative to `direct` in the same rounds. Each epoch gives
    a slope (least squares through its medians); the result is the median of these slopes and their interval."""
    groups: dict[tuple[str, str], list[tuple[float, list[float]]]] = {}
    for row in found:
        if row.metric == "latency" and row.mode != "direct" and row.baseline and row.services:
            over = [mine - other for mine, other in zip(row.blocks, row.baseline, strict=True)]
            medians = [statistics.median(epoch) for epoch in row.by_epoch(over)]
            groups.setdefault((row.mode, row.workload), []).append((row.services / 1000, medians))
    return [
        {
            "mode": mode,
            "workload": workload,
            "us_per_1000_services": _short(statistics.median(each)),
            "interval": [_short(value) for value in stats.order_interval(each).interval],
        }
        for (mode, workload), places in groups.items()
        if len(places) > 1
        for each in [_epoch_slopes(places)]
    ]


def _epoch_slopes(places: Sequence[tuple[float, list[float]]]) -> list[float]:
    count = min(len(medians) for _, medians in places)
    return [stats.slope([(x, medians[epoch]) for x, medians in places]) for epoch in range(count)]
