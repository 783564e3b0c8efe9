"""Plots of a report as inline SVG, by matplotlib. Imported for --html alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perf import stats

Row = dict[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers and in grey by the markers.
STYLE = {
    "direct": ("#555555", "o"),
    "ebpf": ("#0072B2", "s"),
    "ebpf-packet": ("#56B4E9", "P"),
    "iptables": ("#D55E00", "^"),
    "nftables": ("#009E73", "D"),
    "ipvs": ("#CC79A7", "v"),
}
_OTHER = ("#E69F00", "x")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
}


def against_services(rows: Sequence[Row], title: str, label: str, log: bool) -> str:
    """One line per mode over the number of Services, with each point's interval."""

    def draw(axes: Axes) -> None:
        for mode in _modes(rows):
            mine = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["services"])
            colour, marker = STYLE.get(mode, _OTHER)
            x, y = [row["services"] for row in mine], [row["p50"] for row in mine]
            middle, low, high = _errors(mine)
            axes.errorbar(x, middle, yerr=[low, high], color=colour, fmt="none", capsize=3, elinewidth=1)
            axes.plot(x, middle if not log else y, color=colour, marker=marker, markersize=5, label=mode)
        axes.set_xlabel("Services")
        axes.set_ylabel(label)
        _services_axis(axes, sorted({row["services"] for row in rows}))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(_plain))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)

    return _svg(draw, title)


def distribution(rows: Sequence[Row], title: str) -> str:
    """How many connections took longer than so much: the tail is drawn as large as the middle."""

    def draw(axes: Axes) -> None:
        for row in rows:
            colour, _ = STYLE.get(row["mode"], _OTHER)
            ordered = sorted(row["samples"])
            shares = [(len(ordered) - index) / len(ordered) for index in range(len(ordered))]
            axes.step(ordered, shares, where="post", color=colour, label=row["mode"])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        axes.set_xlabel("microseconds")
        axes.set_ylabel("connections that took longer")

    return _svg(draw, title)


def ratios(rows: Sequence[Row], title: str) -> str:
    """Ratio to direct with its interval, a group of bars per number of Services; 1 is the limit."""

    def draw(axes: Axes) -> None:
        sizes, modes = sorted({row["services"] for row in rows}), _modes(rows)
        width = 0.8 / max(1, len(modes))
        for place, mode in enumerate(modes):
            mine = {row["services"]: row for row in rows if row["mode"] == mode}
            there = [(index, mine[size]) for index, size in enumerate(sizes) if size in mine]
            x = [index + (place - (len(modes) - 1) / 2) * width for index, _ in there]
            y = [row["ratio_to_direct"] for _, row in there]
            error = [
                [max(0.0, row["ratio_to_direct"] - row["ratio_interval"][0]) for _, row in there],
                [max(0.0, row["ratio_interval"][1] - row["ratio_to_direct"]) for _, row in there],
            ]
            axes.bar(x, y, width * 0.9, color=STYLE.get(mode, _OTHER)[0], label=mode, yerr=error, capsize=3)
            for left, value, row in zip(x, y, (row for _, row in there), strict=True):
                top = max(value, row["ratio_interval"][1])
                axes.annotate(f"{value:.2f}", (left, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
        axes.axhline(1, color=STYLE["direct"][0], linewidth=1)
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("Services")
        axes.set_ylabel("times direct")
        axes.margins(y=0.12)

    return _svg(draw, title)


def _errors(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    """The middle of each row's blocks, and how far its interval reaches below and above."""
    middles = [stats.percentile(row["blocks"], 50) for row in rows]
    low = [max(0.0, middle - row["interval"][0]) for middle, row in zip(middles, rows, strict=True)]
    high = [max(0.0, row["interval"][1] - middle) for middle, row in zip(middles, rows, strict=True)]
    return middles, low, high


def _modes(rows: Sequence[Row]) -> list[str]:
    """In the order of the table of styles, so that a colour stands in the same place in every legend."""
    there = dict.fromkeys(row["mode"] for row in rows)
    return [mode for mode in STYLE if mode in there] + [mode for mode in there if mode not in STYLE]


def _services_axis(axes: Axes, sizes: Sequence[int]) -> None:
    if len(sizes) > 1:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _plain(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _svg(draw: Callable[[Axes], None], title: str) -> str:
    """An <svg> element that scales with its place; ids are the figure's own."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    head, _, rest = svg.partition(">")
    words = [word for word in head.split() if not word.startswith(("width=", "height="))]
    return f'{" ".join(words)} role="img" aria-label="{title}">{rest}'
