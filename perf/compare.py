"""Finds changes between two reports that are larger than their noise. Pure.

The interval of a figure goes from the lowest to the highest median of its epochs. If nothing changed, two such
intervals of six epochs are disjoint only once in 462 figures (2 / C(12, 6)), for any distribution of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perf import stats
from perf.report import align, states

# Metrics for which a larger value is better.
_MORE = ("rate", "throughput")
# Smaller differences do not matter, even if they are certain. The limit for absolute values is higher, because they
# vary with the state of the machine, while ratios do not.
_LEAST_RATIO = 0.02
_LEAST_VALUE = 0.10
_KEYS = ("mode", "workload", "services", "metric")


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Compare every figure that is in both reports: by its ratio to `direct` if it has one (the state of the machine
    cancels out), else by its value."""
    old = {_key(row): row for row in before["results"]}
    new = {_key(row): row for row in after["results"]}
    changes = [
        _change(before, after, old[key], row)
        for key, row in new.items()
        if key in old and not row["metric"].endswith("_repeat")
    ]
    return {
        "changes": changes,
        "only_before": [dict(zip(_KEYS, key, strict=True)) for key in old if key not in new],
        "only_after": [dict(zip(_KEYS, key, strict=True)) for key in new if key not in old],
        "machines": _machines(before["meta"], after["meta"]),
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _change(before: dict[str, Any], after: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`verdict`: same (within the spread), better, worse, or unclear (different, but a run was too noisy to
    conclude)."""
    ratio = old.get("ratio_interval") is not None and new.get("ratio_interval") is not None and new["mode"] != "direct"
    value, interval = ("ratio_to_direct", "ratio_interval") if ratio else ("p50", "interval")
    first, second = stats.Interval(*old[interval]), stats.Interval(*new[interval])
    factor = new[value] / old[value] if old[value] else None
    least = _LEAST_RATIO if ratio else _LEAST_VALUE
    conclusive = all(states(report, row) if ratio else quiet(report) for report, row in ((before, old), (after, new)))
    if first.overlaps(second) or factor is None or abs(factor - 1) < least:
        verdict = "same"
    elif not conclusive or min(row.get("confidence", stats.CONFIDENCE) for row in (old, new)) < stats.CONFIDENCE:
        verdict = "unclear"
    else:
        verdict = "better" if (factor > 1) == new["metric"].startswith(_MORE) else "worse"
    return {
        **{key: new[key] for key in _KEYS},
        "of": value,
        "before": old[value],
        "before_interval": list(first),
        "after": new[value],
        "after_interval": list(second),
        "factor": round(factor, 4) if factor is not None else None,
        "verdict": verdict,
    }


def quiet(report: dict[str, Any]) -> bool:
    """True if times without a ratio may be compared: all repeats of `direct` agree, and the CPUs were not
    overloaded."""
    repeats = [row for row in report["results"] if row["mode"] == "direct" and row["metric"].endswith("_repeat")]
    calm = all(stats.conclusive(stats.Interval(1, 1), stats.Interval(*row["ratio_interval"])) for row in repeats)
    return calm and report["meta"]["load"][0] <= report["meta"]["cpus"]


def _machines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Differences of the environments. If there are any, only ratios can be compared."""
    keys = (
        "kernel",
        "cpu",
        "cpus",
        "governor",
        "mitigations",
        "backends_per_service",
        "pinned_cpu",
        "tools",
        "scheduling",
    )
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def text(found: dict[str, Any]) -> str:
    """The changes as a table. Equal figures are only counted."""
    changes = found["changes"]
    lines = [f"different surroundings: {words}" for words in found["machines"]]
    table: list[Sequence[str]] = [["figure", "services", "before", "after", "factor", "verdict"]]
    table += [_line(change) for change in changes if change["verdict"] in ("better", "worse")]
    if len(table) > 1:
        lines += align(table)
    same = sum(change["verdict"] == "same" for change in changes)
    lines.append(f"{same} of {len(changes)} figures are the same within their spread")
    unclear = sum(change["verdict"] == "unclear" for change in changes)
    if unclear:
        lines.append(f"{unclear} differ, but one of the runs was too noisy, or had too few samples, to say so")
    for key, words in (("only_before", "only in the first"), ("only_after", "only in the second")):
        if found[key]:
            lines.append(f"{len(found[key])} figures are {words} report")
    return "\n".join(lines) + "\n"


def _line(change: dict[str, Any]) -> Sequence[str]:
    of = " (ratio)" if change["of"] == "ratio_to_direct" else ""
    factor = f"{change['factor']:.3f}" if change["factor"] is not None else ""
    return [
        f"{change['mode']} {change['workload']} {change['metric']}{of}",
        f"{change['services']:,}",
        f"{change['before']:.4g}",
        f"{change['after']:.4g}",
        factor,
        change["verdict"],
    ]
