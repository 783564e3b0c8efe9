"""The tables of a report, for the terminal and the HTML page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from perf import counted, stats
from perf.results import find

Report = dict[str, Any]
Row = dict[str, Any]
Lines = list[list[str]]

TITLES = {
    "crr": "Short connections: connect, request, response, close (us)",
    "rr": "One connection: request and response (us)",
    "udp": "First datagram of a fresh UDP socket and its answer (us)",
    "stream": "Throughput of one connection, both ends on one core (Gbit/s)",
    "program": "From empty to N Services",
    "update": "One endpoint changes (ms)",
    "policy": "New flows under N policy rules",
    "flows": "Events of what is forwarded, on and off (us)",
    "memory": "Memory (MiB)",
    "paths": "Short connections along each path, two nodes, 5 backends, compared with a pod on the same path (us)",
    "packets": "One packet of a Service in the programs (ns)",
    "cni": "A pod starts and ends: the CNI plugin (ms)",
}
_MAIN = {"crr": "latency", "rr": "latency", "udp": "latency", "stream": "throughput"}
_MIB = 2**20


class Table(NamedTuple):
    """One table. `modes`: the mode of each line, for its colour."""

    title: str
    head: list[str]
    lines: Lines
    modes: list[str]


def tables(report: Report) -> list[Table]:
    """The tables of all workloads in the order of TITLES, then the growth."""
    rows = report["results"]
    if counted.is_counted(report):
        return [
            Table(title, list(counted.HEAD), lines, [line[0] for line in lines])
            for title, lines in counted.tables(report)
        ]
    found = []
    for workload in in_order(rows):
        mine = [row for row in rows if row["workload"] == workload]
        head, lines = _BUILDERS.get(workload, _plain)(report, mine)
        found.append(Table(TITLES.get(workload, workload), head, lines, [line[0] for line in lines]))
    if report["slopes"]:
        lines = [
            [
                entry["mode"],
                entry["workload"],
                f"{entry['us_per_1000_services']:+.3f}",
                interval(entry["interval"], 3),
            ]
            for entry in report["slopes"]
        ]
        head = ["mode", "workload", "slope", "interval"]
        found.append(Table("Growth over direct, us per 1,000 Services", head, lines, [line[0] for line in lines]))
    return found


def in_order(rows: Iterable[Row]) -> list[str]:
    """The workloads of the rows, in the order of TITLES."""
    there = dict.fromkeys(row["workload"] for row in rows)
    return [name for name in TITLES if name in there] + [name for name in there if name not in TITLES]


def states(report: Report, row: Row) -> bool:
    """True if the row's ratio to `direct` allows a conclusion, given its spread and the repeats of `direct`."""
    given = row.get("ratio_interval")
    if given is None or row["mode"] == "direct":
        return True
    metric = f"{_MAIN.get(row['workload'], 'latency')}_repeat"
    here = {"mode": "direct", "workload": row["workload"], "services": row["services"]}
    repeat = find(report["results"], **here, metric=metric)
    noise = stats.Interval(*repeat["ratio_interval"]) if repeat else None
    return stats.conclusive(stats.Interval(*given), noise)


def interval(pair: Sequence[float], digits: int) -> str:
    return f"{pair[0]:.{digits}f} - {pair[1]:.{digits}f}"


def _ratio(report: Report, row: Row) -> str:
    """The ratio, with a `?` if it does not allow a conclusion."""
    return f"{row['ratio_to_direct']:.3f}" + ("" if states(report, row) else "?")


def _latency(report: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    workload = rows[0]["workload"]
    main = _MAIN[workload]
    head = ["mode", "Services", "p50", "interval", "p99", "to direct", "interval", "to own pod", "worst place"]
    if workload == "crr":
        head.append("per second")
    lines = []
    for row in rows:
        if row["metric"] != main:
            continue
        here = {"mode": row["mode"], "services": row["services"]}
        places = [find(rows, **here, metric=f"{main}{place}") for place in ("", "_first", "_last")]
        ratios = [place["ratio_to_direct"] for place in places if place]
        rate = find(rows, **here, metric="rate")
        direct = row["mode"] == "direct"
        digits = 2 if workload == "stream" else 1
        line = [
            row["mode"],
            f"{row['services']:,}",
            f"{row['p50']:.{digits}f}",
            interval(row["interval"], digits),
            f"{row['p99']:.{digits}f}" if main == "latency" else "",
            "1" if direct else _ratio(report, row),
            "" if direct else interval(row["ratio_interval"], 3),
            f"{row['ratio_to_pod']:.3f}" if "ratio_to_pod" in row and not direct else "",
            f"{max(ratios):.3f}" if len(ratios) > 1 else "",
        ]
        lines.append(line + ([f"{rate['p50']:,.0f}" if rate else ""] if workload == "crr" else []))
    return head, lines


def _pivot(rows: Sequence[Row], columns: Sequence[tuple[str, str, float]]) -> tuple[list[str], Lines]:
    """One line per mode and number of Services. `columns`: (metric, heading, units per shown unit)."""
    there = {row["metric"] for row in rows}
    shown = [column for column in columns if column[0] in there]
    head = ["mode", "Services"]
    for index, (_, words, _) in enumerate(shown):
        head += [words, "lowest - highest"] if index == 0 else [words]
    lines = []
    for mode, services in dict.fromkeys((row["mode"], row["services"]) for row in rows):
        line = [mode, f"{services:,}"]
        for index, (metric, _, scale) in enumerate(shown):
            row = find(rows, mode=mode, services=services, metric=metric)
            line.append(number(row["p50"] / scale) if row else "")
            if index == 0:
                line.append(_lowest_highest(row, scale))
        lines.append(line)
    return head, lines


def _lowest_highest(row: Row | None, scale: float) -> str:
    if row is None or len(row["samples"]) < 2:
        return ""
    return " - ".join(number(value / scale) for value in row["spread"])


def _program(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    return _pivot(rows, [("seconds", "seconds", 1), ("cpu_seconds", "CPU seconds", 1), ("tool_rss", "tool MiB", _MIB)])


def _update(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    return _pivot(rows, [("first_connection", "first connection", 1), ("sync", "sync", 1), ("cpu", "CPU", 1)])


def _memory(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    head, lines = _pivot(rows, [("kernel", "kernel", _MIB), ("process", "agent's user space", _MIB)])
    for line in lines:
        row = find(rows, mode=line[0], services=int(line[1].replace(",", "")), metric="kernel")
        line.append(row["how"] if row else "")
    return [*head, "kernel memory as"], lines


def _policy(report: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    lines = []
    for row in rows:
        if not row["metric"].startswith("latency"):
            continue
        written = find(rows, metric=row["metric"].replace("latency", "seconds"))
        lines.append(
            [
                row["mode"],
                f"{row['rules']:,}",
                f"{row['p50']:.1f}",
                interval(row["interval"], 1),
                _ratio(report, row),
                interval(row["ratio_interval"], 3),
                number(written["p50"] * 1000) if written else "",
            ]
        )
    return ["mode", "rules", "us", "interval", "to direct", "interval", "ms to write them"], lines


def _flows(report: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    lines = [
        [
            row["mode"],
            row["metric"].removeprefix("latency_events_"),
            f"{row['p50']:.1f}",
            interval(row["interval"], 1),
            f"{row['p99']:.1f}",
            _ratio(report, row),
            interval(row["ratio_interval"], 3),
        ]
        for row in rows
    ]
    return ["mode", "events", "p50", "interval", "p99", "to direct", "interval"], lines


def _cni(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    lines = [
        [
            row["mode"],
            row["metric"].removeprefix("burst_").upper(),
            f"{row.get('at_once', 1)}",
            f"{row.get('leases', 0):,}",
            number(row["p50"]),
            number(row["p99"]),
            f"{row['ratio_to_reference']:.2f}" if "ratio_to_reference" in row else "",
            f"{row['p99_ratio_to_reference']:.2f}" if "p99_ratio_to_reference" in row else "",
        ]
        for row in rows
    ]
    head = ["plugin", "verb", "at once", "leases", "p50", "p99", "p50 to reference", "p99 to reference"]
    return head, lines


def _paths(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    lines = [
        [
            row["mode"],
            row["metric"],
            number(row["p50"]),
            interval(row["interval"], 1),
            number(row["p99"]),
            f"{row['ratio_to_direct']:.3f}" if "ratio_interval" in row else "",
            interval(row["ratio_interval"], 3) if "ratio_interval" in row else "",
        ]
        for row in rows
    ]
    return ["mode", "path", "p50", "interval", "p99", "to pod", "interval"], lines


def _packets(_: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    lines = [
        [row["mode"], row["metric"], number(row["p50"]), interval(row["interval"], 0), number(min(row["blocks"]))]
        for row in rows
    ]
    return ["mode", "packet", "p50", "interval", "least block"], lines


def _plain(report: Report, rows: Sequence[Row]) -> tuple[list[str], Lines]:
    """The figures that have no table of their own."""
    lines = []
    for row in rows:
        scale, unit = (_MIB, "MiB") if row["unit"] == "bytes" else (1, row["unit"])
        lines.append(
            [
                row["mode"],
                f"{row['services']:,}",
                row["metric"].replace("_", " "),
                number(row["p50"] / scale),
                _lowest_highest(row, scale),
                unit,
                "" if row["ratio_to_direct"] is None else _ratio(report, row),
            ]
        )
    return ["mode", "Services", "figure", "p50", "lowest - highest", "unit", "to direct"], lines


_BUILDERS: dict[str, Callable[[Report, Sequence[Row]], tuple[list[str], Lines]]] = {
    **dict.fromkeys(_MAIN, _latency),
    "program": _program,
    "update": _update,
    "memory": _memory,
    "policy": _policy,
    "flows": _flows,
    "cni": _cni,
    "paths": _paths,
    "packets": _packets,
}


def number(value: float) -> str:
    """A number with three significant digits and without exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
