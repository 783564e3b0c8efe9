"""Draws the workload `cni` (pod starts by plugin) on axes of perf.plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

Row = dict[str, Any]

# Colours as for the modes: ours blue, the reference red. Hatches distinguish them in black and white.
COLOURS = {"agent": "#0072B2", "alone": "#56B4E9", "bridge + host-local": "#D55E00"}
_HATCHES = {"agent": "", "alone": "//", "bridge + host-local": ".."}
_VERBS = {"burst_add": "ADD", "burst_del": "DEL"}


def by_leases(axes: Axes, rows: Sequence[Row]) -> None:
    """Consecutive ADDs: the median, with a whisker up to the upper end of its interval. One group of bars per number of
    leases on the node."""
    _bars(axes, rows, "leases", lambda leases: f"{leases:,}", lambda row: row["interval"][1])
    axes.set_xlabel("leases on the node")


def bursts(axes: Axes, rows: Sequence[Row]) -> None:
    """Concurrent calls: the median, with a whisker up to the 99th percentile. One group of bars per verb."""
    _bars(axes, rows, "metric", _VERBS.__getitem__, lambda row: row["p99"])


def _bars(axes: Axes, rows: Sequence[Row], key: str, words: Any, top: Any) -> None:
    """One group of bars per value of `key`, with one bar per plugin: the median, with a whisker up to `top`."""
    groups, ways = list(dict.fromkeys(row[key] for row in rows)), list(dict.fromkeys(row["mode"] for row in rows))
    width = 0.84 / len(ways)
    for place, way in enumerate(ways):
        mine = {row[key]: row for row in rows if row["mode"] == way}
        there = [(index, mine[group]) for index, group in enumerate(groups) if group in mine]
        x = [index + (place - (len(ways) - 1) / 2) * width for index, _ in there]
        y = [row["p50"] for _, row in there]
        over = [max(0.0, top(row) - row["p50"]) for _, row in there]
        style: dict[str, Any] = {
            "color": COLOURS.get(way, "#E69F00"),
            "hatch": _HATCHES.get(way, "x"),
            "edgecolor": "white",
        }
        axes.bar(x, y, width * 0.88, label=way, yerr=[[0.0] * len(over), over], capsize=2, ecolor="#222", **style)
        for left, value, rest in zip(x, y, over, strict=True):
            place_of = (left, value + rest)
            axes.annotate(f"{value:.3g}" if value < 1000 else f"{value:,.0f}", place_of, (0, 4),
                          textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
    # The axis starts at zero, because the length of a bar must be proportional to its value.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xticks(range(len(groups)), [words(group) for group in groups])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("milliseconds")
    axes.margins(y=0.12)
