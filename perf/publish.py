#!/usr/bin/env python3
"""Writes reports to docs/bench.md (the text between its two marks) and plots to docs/img.

    python -m perf.publish FULL.json [--again AGAIN.json] [--counted VM.json] [--cni CNI.json]
                           [--memory MEMORY.json] [--docs docs]

The text outside the marks is written by hand and is not changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perf import compare, plots, report, tables
from perf.results import find

Report = dict[str, Any]

# Plots that have their own sections.
_APART = ("instructions", "cni")

BEGIN, END = "<!-- figures: written by perf/publish.py -->", "<!-- end of figures -->"
IMAGES = "img"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path, help="the report of the full run")
    parser.add_argument("--again", type=Path, help="a second run, compared with the first")
    parser.add_argument("--counted", type=Path, help="a report of --vm")
    parser.add_argument("--cni", type=Path, help="a report of --workloads cni")
    parser.add_argument("--memory", type=Path, help="a report of --vm --workloads memory")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where bench.md is (default %(default)s)")
    given = parser.parse_args()
    others = {name: _read(path) if path else None for name, path in vars(given).items() if name in _OTHERS}
    full = _read(given.full)
    target = given.docs / "bench.md"
    old = target.read_text()
    if BEGIN not in old or END not in old:
        print(f"{target}: the two marks are missing: {BEGIN} and {END}", file=sys.stderr)
        return 2
    images = draw([full, *filter(None, others.values())], given.docs / IMAGES)
    before, _, rest = old.partition(BEGIN)
    target.write_text(f"{before}{BEGIN}\n\n{text(full, images, **others)}\n{END}{rest.partition(END)[2]}")
    print(f"{target} and {len(images)} plots in {given.docs / IMAGES}")
    return 0


_OTHERS = ("again", "counted", "cni", "memory")


def _read(path: Path) -> Report:
    found: Report = json.loads(path.read_text())
    return found


def draw(reports: Iterable[Report], folder: Path) -> dict[str, str]:
    """Write every plot to its own file. Returns name -> title."""
    folder.mkdir(exist_ok=True)
    found = {}
    for one in reports:
        for plot in plots.of(one):
            if plot.name in found:
                continue  # keep the plot of the full run; the second run is smaller
            (folder / f"{plot.name}.svg").write_text(plot.draw())
            found[plot.name] = f"{plot.title} ({plot.words})"
    return found


def text(
    full: Report,
    images: dict[str, str],
    again: Report | None = None,
    counted: Report | None = None,
    cni: Report | None = None,
    memory: Report | None = None,
) -> str:
    """The complete text between the marks."""
    parts = [f"## In short\n\n{markdown(in_short(full))}"]
    parts += [f"![{title}]({IMAGES}/{name}.svg)" for name, title in images.items() if not name.startswith(_APART)]
    parts.append(f"## The run\n\n```\n{report.text(full)}```")
    if again:
        parts.append(f"## The same again\n\n{_again(full, again)}")
    if counted:
        drawn = [f"![{title}]({IMAGES}/{name}.svg)" for name, title in images.items() if "instructions" in name]
        parts += ["## Beside it: counted in a virtual machine", *drawn, f"```\n{report.text(counted)}```"]
    if memory:
        parts.append(f"## Kernel memory, in a virtual machine\n\n```\n{report.text(memory)}```")
    if cni:
        drawn = [f"![{title}]({IMAGES}/{name}.svg)" for name, title in images.items() if name.startswith("cni")]
        parts += ["## What a pod start costs", *drawn, f"```\n{report.text(cni)}```"]
    return "\n\n".join(parts) + "\n"


def _again(full: Report, again: Report) -> str:
    words = f"A second run, of {again['meta']['date']}, beside the first (`nodenet bench compare`):"
    return f"{words}\n\n```\n{compare.text(compare.compare(full, again))}```"


def in_short(full: Report) -> list[list[str]]:
    """The summary table, with one line per question and one column per mode."""
    rows = full["results"]
    modes = [mode for mode in plots.STYLE if mode != "direct" and find(rows, mode=mode)]
    sizes = sorted({row["services"] for row in rows if row["workload"] in ("crr", "program", "update")})
    found = [["", *modes]]
    found += [
        [f"short connection, to direct, at {_services(size)}", *_each(full, modes, size, _ratio)] for size in sizes
    ]
    grown = {entry["mode"]: entry for entry in full["slopes"] if entry["workload"] == "crr"}
    if grown:
        cells = [_slope(grown[mode]) if mode in grown else "" for mode in modes]
        found.append(["growth, us per 1,000 Services", *cells])
    found += [
        [f"one endpoint changes, first connection, at {size:,}", *_each(full, modes, size, _update)] for size in sizes
    ]
    found += [[f"{_services(size)} from empty", *_each(full, modes, size, _program)] for size in sizes]
    return [line for line in found if any(line[1:])]


def _services(count: int) -> str:
    return f"{count:,} Service{'s' if count > 1 else ''}"


def _each(full: Report, modes: Sequence[str], size: int, cell: Any) -> list[str]:
    left_out = {
        (entry["mode"], entry["workload"])
        for entry in full["meta"]["skipped"]
        if entry["services"] in range(1, size + 1)
    }
    return [cell(full, mode, size) or ("left out" if (mode, "program") in left_out else "") for mode in modes]


def _ratio(full: Report, mode: str, size: int) -> str:
    row = find(full["results"], mode=mode, workload="crr", services=size, metric="latency")
    if row is None:
        return ""
    low, high = row["ratio_interval"]
    doubt = "" if tables.states(full, row) else "?"
    last = find(full["results"], mode=mode, workload="crr", services=size, metric="latency_last")
    worst = f"; worst place {last['ratio_to_direct']:.2f}" if last else ""
    return f"{row['ratio_to_direct']:.3f}{doubt} ({low:.3f} - {high:.3f}{worst})"


def _slope(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['us_per_1000_services']:+.3f} ({low:.3f} - {high:.3f})"


def _update(full: Report, mode: str, size: int) -> str:
    row = find(full["results"], mode=mode, workload="update", services=size, metric="first_connection")
    return f"{tables.number(row['p50'])} ms" if row else ""


def _program(full: Report, mode: str, size: int) -> str:
    row = find(full["results"], mode=mode, workload="program", services=size, metric="seconds")
    if row is None:
        return ""
    return f"{tables.number(row['p50'] * 1000)} ms" if row["p50"] < 1 else f"{tables.number(row['p50'])} s"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


if __name__ == "__main__":
    sys.exit(main())
