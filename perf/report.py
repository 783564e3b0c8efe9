"""A report for the terminal: tables of text from what the JSON file holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from perf import counted, stats
from perf.results import find

Report = dict[str, Any]
Row = dict[str, Any]

TITLES = {
    "crr": "Short connections: connect, request, response, close (us)",
    "rr": "One connection: request and response (us)",
    "udp": "First datagram of a fresh UDP socket and its answer (us)",
    "stream": "Throughput of one connection, both ends on one core (Gbit/s)",
    "program": "From empty to N Services",
    "update": "One endpoint changes (ms)",
    "policy": "New flows under N policy rules (us)",
    "flows": "Events of what is forwarded (us)",
    "memory": "Memory (MiB)",
    "cni": "The CNI executable",
}
_MAIN = {"crr": "latency", "rr": "latency", "udp": "latency", "stream": "throughput"}


def text(report: Report) -> str:
    """Every table, the slopes, the noise, what was left out."""
    if counted.is_counted(report):
        return _counted_text(report)
    rows = report["results"]
    parts = [heading(report["meta"])]
    for workload in in_order(rows):
        mine = [row for row in rows if row["workload"] == workload]
        lines = _latency_lines(report, workload, mine) if workload in _MAIN else _plain_lines(mine)
        parts.append("\n".join([TITLES.get(workload, workload), *lines]))
    if report["slopes"]:
        parts.append("\n".join(["Growth over direct, us per 1,000 Services (95 % interval)", *_slopes(report)]))
    parts.append("\n".join(remarks(report)))
    return "\n\n".join(parts) + "\n"


def _counted_text(report: Report) -> str:
    parts = ["\n".join(counted.heading(report["meta"])), "\n".join(wrap(counted.EXPLANATION, 110))]
    parts += ["\n".join([title, *align([counted.HEAD, *lines])]) for title, lines in counted.tables(report)]
    parts.append("\n".join(counted.remarks(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def in_order(rows: Iterable[Row]) -> list[str]:
    """The workloads that there are, as TITLES lists them."""
    there = dict.fromkeys(row["workload"] for row in rows)
    return [name for name in TITLES if name in there] + [name for name in there if name not in TITLES]


def heading(meta: dict[str, Any]) -> str:
    """Where and how, in three lines."""
    pinned = "not pinned" if meta["pinned_cpu"] is None else f"client and server on CPU {meta['pinned_cpu']}"
    tools = ", ".join(f"{mode}: {version}" for mode, version in meta["tools"].items())
    return (
        f"{meta['date']}  kernel {meta['kernel']}  {meta['cpus']} x {meta['cpu']}  load {meta['load'][0]:.2f}\n"
        f"{meta['backends_per_service']} backends per Service, {how_often(meta)}, {pinned}; "
        f"{meta['seconds']:g} s in all\n{tools}"
    )


def how_often(meta: dict[str, Any]) -> str:
    """Epochs, rounds and samples in words."""
    rounds = f"{meta['rounds']} interleaved rounds of {meta['samples_per_block']} samples"
    epochs = meta.get("epochs", 1)
    return rounds if epochs == 1 else f"{epochs} epochs of {rounds}"


def remarks(report: Report) -> list[str]:
    """The machine's noise, what was left out, and what a reader must know."""
    meta = report["meta"]
    spin = meta["noise"]
    lines = [
        f"noise: equal pieces of arithmetic took {spin['lowest']:g} to {spin['highest']:g} of their median "
        f"(90 % up to {spin['p90']:g}); the hypervisor kept {spin.get('stolen', 0):.1f} s of CPU time"
    ]
    lines += _switches(report["results"])
    for row in report["results"]:
        if row["mode"] == "direct" and row["metric"].endswith("_repeat"):
            low, high = row["ratio_interval"]
            lines.append(
                f"noise: direct again, {row['workload']} at {row['services']}: {row['ratio_to_direct']:.3f} of itself "
                f"({low:.3f} - {high:.3f})"
            )
    epochs = meta.get("epochs", 1)
    lines += [f"note: {note}" for note in meta["notes"]]
    if epochs > 1:
        sure = stats.order_interval([0.0] * epochs).confidence
        lines.append(
            f"intervals: of the medians of {epochs} epochs, in each of which everything was made anew; "
            f"they hold the true median in {sure * 100:.0f} of 100 cases"
        )
    lines += [f"left out: {_skipped(entry)}" for entry in meta["skipped"]]
    if any(not states(report, row) for row in report["results"]):
        lines.append("?: the spread is too wide to conclude; run again on a quieter machine")
    return lines


def _switches(rows: Sequence[Row]) -> list[str]:
    """Whether client and server took turns alike in all modes."""
    counts = [row["switches"] for row in rows if row["workload"] == "crr" and row.get("switches")]
    if not counts:
        return []
    given = [waits / samples for samples, waits, _ in counts]
    taken = sum(count[2] for count in counts) / sum(count[0] for count in counts)
    return [
        f"noise: the client gave the CPU away {min(given):.3f} to {max(given):.3f} times per connection; "
        f"it was taken from it in {taken * 1000:.1f} of 1,000"
    ]


def states(report: Report, row: Row) -> bool:
    """Whether the row's ratio to direct may be stated, given its spread and direct's own repeat."""
    interval = row.get("ratio_interval")
    if interval is None or row["mode"] == "direct":
        return True
    repeat = _repeat(report, row)
    noise = stats.Interval(*repeat["ratio_interval"]) if repeat else None
    return stats.conclusive(stats.Interval(*interval), noise)


def _repeat(report: Report, row: Row) -> Row | None:
    metric = f"{_MAIN.get(row['workload'], 'latency')}_repeat"
    return find(report["results"], mode="direct", workload=row["workload"], services=row["services"], metric=metric)


def _latency_lines(report: Report, workload: str, rows: Sequence[Row]) -> list[str]:
    main = _MAIN[workload]
    table = [["mode", "services", "p50", "interval", "p99", "to direct", "interval", "to own pod", "worst place"]]
    for row in rows:
        if row["metric"] != main:
            continue
        ratio = row["ratio_to_direct"]
        doubt = "" if states(report, row) else "?"
        places = [r for r in rows if (r["mode"], r["services"]) == (row["mode"], row["services"])]
        worst = max(
            (r["ratio_to_direct"] for r in places if r["metric"] in (main, f"{main}_first", f"{main}_last")),
            default=None,
        )
        table.append(
            [
                row["mode"],
                f"{row['services']:,}",
                f"{row['p50']:.1f}",
                _interval(row["interval"], 1),
                f"{row['p99']:.1f}",
                "1" if row["mode"] == "direct" else f"{ratio:.3f}{doubt}",
                "" if row["mode"] == "direct" else _interval(row["ratio_interval"], 3),
                f"{row['ratio_to_pod']:.3f}" if "ratio_to_pod" in row else "",
                f"{worst:.3f}" if worst is not None and len(places) > 3 and main == "latency" else "",
            ]
        )
    return align(table)


def _plain_lines(rows: Sequence[Row]) -> list[str]:
    table = [["mode", "services", "figure", "p50", "lowest", "highest", "unit", "to direct"]]
    for row in rows:
        scale, unit = (2**20, "MiB") if row["unit"] == "bytes" else (1, row["unit"])
        values = [row["p50"], *row["spread"]]
        ratio = row["ratio_to_direct"]
        table.append(
            [
                row["mode"],
                f"{row['services']:,}",
                row["metric"].replace("_", " "),
                *(f"{value / scale:.4g}" for value in values),
                unit,
                f"{ratio:.2f}" if ratio is not None else "",
            ]
        )
    return align(table)


def _slopes(report: Report) -> list[str]:
    table = [["mode", "workload", "slope", "interval"]]
    for entry in report["slopes"]:
        slope = f"{entry['us_per_1000_services']:+.3f}"
        table.append([entry["mode"], entry["workload"], slope, _interval(entry["interval"], 3)])
    return align(table)


def _skipped(entry: dict[str, Any]) -> str:
    where = f" {entry['workload']} at {entry['services']:,} Services" if entry["workload"] else ""
    return f"{entry['mode']}{where}: {entry['reason']}"


def _interval(pair: Sequence[float], digits: int) -> str:
    return f"{pair[0]:.{digits}f} - {pair[1]:.{digits}f}"


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  " + "  ".join(_cells(row, widths)).rstrip() for row in table]


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if index == 0 else cell.rjust(width)
