"""A report for the terminal, as text tables made from the JSON data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from perf import counted, stats
from perf.tables import in_order, states, tables

__all__ = ["align", "heading", "how_often", "in_order", "remarks", "states", "text"]

Report = dict[str, Any]
Row = dict[str, Any]


def text(report: Report) -> str:
    """The complete report: tables, slopes, noise, and what was left out."""
    if counted.is_counted(report):
        parts = ["\n".join(counted.heading(report["meta"])), "\n".join(wrap(counted.EXPLANATION, 110))]
    else:
        parts = [heading(report["meta"])]
    parts += ["\n".join([table.title, *align([table.head, *table.lines])]) for table in tables(report)]
    parts.append("\n".join(remarks(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(meta: dict[str, Any]) -> str:
    """Three lines about the machine and the run."""
    pinned = "not pinned" if meta["pinned_cpu"] is None else f"client and server on CPU {meta['pinned_cpu']}"
    tools = ", ".join(f"{mode}: {version}" for mode, version in meta["tools"].items())
    how = f"{backends(meta)}, {how_often(meta)}, {pinned}; " if meta.get("epochs", 1) else ""
    return (
        f"{meta['date']}  kernel {meta['kernel']}  {meta['cpus']} x {meta['cpu']}  load {meta['load'][0]:.2f}\n"
        f"{how}{meta['seconds']:g} s in all\n{tools}"
    ).rstrip()


def backends(meta: dict[str, Any]) -> str:
    """The number of backends per Service, as text."""
    count = meta["backends_per_service"]
    return f"{count} backend{'s' if count > 1 else ''} per Service"


def how_often(meta: dict[str, Any]) -> str:
    """Epochs, rounds and samples, as text."""
    rounds = f"{meta['rounds']} interleaved rounds of {meta['samples_per_block']} samples"
    epochs = meta.get("epochs", 1)
    return rounds if epochs == 1 else f"{epochs} epochs of {rounds}"


def remarks(report: Report) -> list[str]:
    """Remarks about the machine's noise, what was left out, and other things that readers must know."""
    if counted.is_counted(report):
        return counted.remarks(report)
    meta = report["meta"]
    lines = _noise(report)
    epochs = meta.get("epochs", 1)
    if epochs > 1:
        sure = stats.order_interval([0.0] * epochs).confidence
        lines.append(
            f"intervals: of the medians of {epochs} epochs, each with a new set-up; "
            f"they contain the true median in {sure * 100:.0f} of 100 cases"
        )
    if meta["load"][0] > meta["cpus"]:
        lines.append(
            f"note: others wanted the CPUs (load {meta['load'][0]:.1f} on {meta['cpus']}): ratios hold within their "
            "intervals, times and p99 are not those of a quiet machine"
        )
    lines += [f"note: {note}" for note in meta["notes"]]
    lines += [f"left out: {_skipped(entry)}" for entry in meta["skipped"]]
    if any(not states(report, row) for row in report["results"] if row["metric"] != "rate"):
        lines.append("?: the spread is too wide to conclude; run again on a quieter machine")
    return lines


def _noise(report: Report) -> list[str]:
    spin = report["meta"]["noise"]
    lines = [f"noise: the hypervisor kept {spin.get('stolen', 0):.1f} s of CPU time"]
    if "highest" in spin:
        lines.append(
            f"noise: equal pieces of arithmetic took {spin['lowest']:g} to {spin['highest']:g} of their median "
            f"(90 % up to {spin['p90']:g})"
        )
    lines += _switches(report["results"])
    for row in report["results"]:
        if row["mode"] == "direct" and row["metric"].endswith("_repeat"):
            low, high = row["ratio_interval"]
            lines.append(
                f"noise: direct again, {row['workload']} at {row['services']:,}: {row['ratio_to_direct']:.3f} of "
                f"itself ({low:.3f} - {high:.3f})"
            )
    return lines


def _switches(rows: Sequence[Row]) -> list[str]:
    """Remarks about context switches, which must be equal in all modes for a fair comparison."""
    counts = [row["switches"] for row in rows if row["workload"] == "crr" and row.get("switches")]
    if not counts:
        return []
    given = [waits / samples for samples, waits, _ in counts]
    taken = sum(count[2] for count in counts) / sum(count[0] for count in counts)
    return [
        f"noise: the client gave the CPU away {min(given):.3f} to {max(given):.3f} times per connection; "
        f"it was taken from it in {taken * 1000:.1f} of 1,000"
    ]


def _skipped(entry: dict[str, Any]) -> str:
    size = f" at {entry['services']:,} Services" if entry["services"] else ""
    where = f" {entry['workload']}{size}" if entry["workload"] else ""
    return f"{entry['mode']}{where}: {entry['reason']}"


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, numbers to the right. Columns without any figure are left
    out."""
    used = [column for column in range(len(table[0])) if any(row[column] for row in table[1:])]
    table = [[row[column] for column in used] for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(used))]
    return ["  " + "  ".join(_cells(row, widths)).rstrip() for row in table]


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if index == 0 else cell.rjust(width)
