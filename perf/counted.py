"""Reports of a virtual machine, in instructions: derives them from its clock, and formats them. Pure.

They must not be mistaken for times, so they have other names of workloads and metrics, a flag in the report, and their
own texts. A report of times may include one as a separate section.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perf import stats
from perf.results import Result, find

Report = dict[str, Any]
Row = dict[str, Any]

UNIT = "thousand instructions"
SUFFIX = "_instructions"
TITLES = {
    f"crr{SUFFIX}": "Short connections: thousand instructions per connection",
    f"rr{SUFFIX}": "One connection: thousand instructions per request and response",
    f"udp{SUFFIX}": "First datagram of a fresh UDP socket and its answer: thousand instructions",
}
EXPLANATION = (
    "Counted, not timed: client, server and kernel together, in a virtual machine whose clock counts instructions. The "
    "tenth percentile of each block: a connection that nothing interrupted. It tells nothing about caches and memory."
)
HEAD = ("mode", "Services", "p10", "lowest - highest block", "to direct", "to own pod", "worst place")


def is_counted(report: Report) -> bool:
    """True if the figures of a report are instructions."""
    return bool(report["meta"].get("counted"))


def counted(report: Report, left_out: Sequence[str]) -> Report:
    """Convert a report of times measured under icount to instructions. Takes the tenth percentile of each block."""
    rounds = report["meta"]["rounds"]
    rows = [row for row in report["results"] if row["metric"].startswith("latency") and row["unit"] == "us"]
    blocks = {_key(row): _tenths(row["samples"], rounds) for row in rows}
    results = [_counted_row(row, blocks) for row in rows]
    meta = report["meta"] | {"counted": True, "icount": True}
    meta["skipped"] = [
        *meta["skipped"],
        *(
            {"mode": "all", "workload": name, "services": 0, "reason": "a virtual machine only counts instructions"}
            for name in left_out
        ),
    ]
    return {"meta": meta, "results": results, "slopes": []}


def _counted_row(row: Row, blocks: dict[tuple[str, str, int, str], tuple[float, ...]]) -> Row:
    mode, workload, count, _ = key = _key(row)
    pod = blocks.get((mode, workload, count, "latency_pod"), ()) if row["metric"] != "latency_pod" else ()
    made = Result(
        mode=mode,
        workload=f"{workload}{SUFFIX}",
        services=count,
        metric=row["metric"].replace("latency", "instructions"),
        unit=UNIT,
        samples=tuple(row["samples"]),
        blocks=blocks[key],
        baseline=blocks["direct", workload, count, "latency"],
        pod=pod,
        extra={"p10": round(stats.percentile(row["samples"], 10), 3)},
    )
    return made.as_json()


def _key(row: Row) -> tuple[str, str, int, str]:
    return row["mode"], row["workload"], row["services"], row["metric"]


def _tenths(samples: Sequence[float], rounds: int) -> tuple[float, ...]:
    size = len(samples) // rounds
    return tuple(stats.percentile(samples[at * size : (at + 1) * size], 10) for at in range(rounds))


def tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """(title, rows of cells under HEAD) of each workload."""
    rows = report["results"]
    there = dict.fromkeys(row["workload"] for row in rows)
    return [(TITLES.get(name, name), _lines([row for row in rows if row["workload"] == name])) for name in there]


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    found = []
    for row in rows:
        if row["metric"] != "instructions":
            continue
        here = {"mode": row["mode"], "services": row["services"]}
        places = [find(rows, **here, metric=f"instructions{place}") for place in ("", "_first", "_last")]
        ratios = [place["ratio_to_direct"] for place in places if place]
        direct = row["mode"] == "direct"
        found.append(
            [
                row["mode"],
                f"{row['services']:,}",
                f"{row['p10']:.1f}",
                f"{row['spread'][0]:.1f} - {row['spread'][1]:.1f}",
                "1" if direct else f"{row['ratio_to_direct']:.3f}",
                "" if direct or "ratio_to_pod" not in row else f"{row['ratio_to_pod']:.3f}",
                f"{max(ratios):.3f}" if len(ratios) > 1 else "",
            ]
        )
    return found


def heading(meta: dict[str, Any]) -> list[str]:
    """Three lines about the machine and the run."""
    versions = ", ".join(f"{mode}: {version}" for mode, version in meta["tools"].items())
    return [
        f"{meta['date']}  virtual machine, kernel {meta['kernel']}, one emulated CPU that counts instructions",
        f"backends per Service: {meta['backends_per_service']}; {meta['rounds']} interleaved rounds of "
        f"{meta['samples_per_block']} samples; {meta['seconds']:g} s on this machine's clock",
        versions,
    ]


def remarks(report: Report) -> list[str]:
    """Remarks: how well the counts repeat, and what was left out."""
    lines = [
        f"repeats: direct again at {row['services']:,} Services, {row['workload'].removesuffix(SUFFIX)}: "
        f"{row['ratio_to_direct']:.4f} of itself"
        for row in report["results"]
        if row["metric"] == "instructions_repeat"
    ]
    lines += [f"note: {note}" for note in report["meta"]["notes"]]
    for entry in report["meta"]["skipped"]:
        where = f" {entry['workload']}" if entry["workload"] else ""
        size = f" at {entry['services']:,} Services" if entry["services"] else ""
        lines.append(f"left out: {entry['mode']}{where}{size}: {entry['reason']}")
    return lines
