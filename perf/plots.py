"""Plots of a report as inline SVG, made with matplotlib. Imported only for --html and for the documentation's
figures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from perf import cni_plots, counted, stats

Row = dict[str, Any]


class Style(NamedTuple):
    """The style of a mode in all plots: colour, marker and dashes."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]


# Okabe and Ito's colours, which colour-blind readers can distinguish. Markers and dashes help in black and white.
STYLE = {
    "direct": Style("#555555", "o", "-"),
    "ebpf": Style("#0072B2", "s", "-"),
    "ebpf-packet": Style("#56B4E9", "P", (0, (5, 1.5))),
    "iptables": Style("#D55E00", "^", (0, (6, 1.5, 1.5, 1.5))),
    "nftables": Style("#009E73", "D", (0, (3, 1.2))),
    "ipvs": Style("#CC79A7", "v", (0, (1.5, 1))),
}
_OTHER = Style("#E69F00", "x", "-")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
}
# With more bars than this, their numbers are written vertically.
_BARS = 12


class Plot(NamedTuple):
    """One plot: a file name, the texts above it, and the function that draws it."""

    name: str
    title: str
    words: str
    draw: Callable[[], str]


def of(report: dict[str, Any]) -> list[Plot]:
    """All plots for which the report has rows."""
    rows = report["results"]
    return list(_counted(rows) if counted.is_counted(report) else [*_latency(rows), *_rest(rows), *_cni(rows)])


def _counted(rows: Sequence[Row]) -> Iterable[Plot]:
    for suffix, what in (("crr", "Short connections"), ("rr", "Request and response"), ("udp", "First datagram")):
        chosen = _rows(rows, f"{suffix}{counted.SUFFIX}", "instructions")
        if chosen:
            yield Plot(
                f"instructions-{suffix}",
                f"{what}: instructions against Services",
                "thousand instructions of client, server and kernel; direct is the limit",
                lambda chosen=chosen: against_services(chosen, "thousand instructions", log=False),  # type: ignore[misc]
            )


def _latency(rows: Sequence[Row]) -> Iterable[Plot]:
    for workload, what in (("crr", "Short connections"), ("rr", "Request and response"), ("udp", "First datagram")):
        chosen = _rows(rows, workload, "latency")
        others = [row for row in chosen if row["mode"] != "direct"]
        if len({row["services"] for row in chosen}) > 1:
            yield Plot(
                f"latency-{workload}",
                f"{what}: latency against Services",
                "median and interval; direct is the limit",
                lambda chosen=chosen: against_services(chosen, "microseconds", log=False),  # type: ignore[misc]
            )
        if others:
            yield Plot(
                f"ratio-{workload}",
                f"{what}: ratio to direct",
                "direct: pod to pod on a clean twin node",
                lambda others=others: ratios(others),  # type: ignore[misc]
            )


def _rest(rows: Sequence[Row]) -> Iterable[Plot]:
    latency = _rows(rows, "crr", "latency")
    if latency:
        most = max(row["services"] for row in latency)
        yield Plot(
            "distribution-crr",
            f"Short connections: distribution at {most:,} Services",
            "every connection, outliers too; further left is better",
            lambda: distribution([row for row in latency if row["services"] == most]),
        )
    for name, title, words, metric, unit in (
        ("program", "From empty to N Services", "until the kernel has them all", "seconds", "seconds"),
        ("update", "One endpoint changes", "until the first connection reaches it", "first_connection", "milliseconds"),
    ):
        chosen = _rows(rows, name, metric)
        if chosen:
            yield Plot(
                name,
                title,
                f"{unit} {words}; both axes are logarithmic",
                lambda chosen=chosen, unit=unit: against_services(chosen, unit, log=True),  # type: ignore[misc]
            )


def _cni(rows: Sequence[Row]) -> Iterable[Plot]:
    adds = _rows(rows, "cni", "add")
    if adds:
        yield Plot(
            "cni-leases",
            "A pod starts: ADD by leases",
            "median and interval of one call after the other",
            lambda: _svg(lambda axes: cni_plots.by_leases(axes, adds), "milliseconds of ADD against leases"),
        )
    many = [row for row in rows if row["workload"] == "cni" and row["metric"].startswith("burst_")]
    if many:
        yield Plot(
            "cni-burst",
            f"Pods start and end together: {many[0]['at_once']} calls at once",
            "median of the calls, whisker up to the 99th percentile",
            lambda: _svg(lambda axes: cni_plots.bursts(axes, many), "milliseconds of calls in a burst"),
        )


def colour(mode: str) -> str:
    """The colour of a mode or of a CNI plugin; "" if it has none."""
    return STYLE[mode].colour if mode in STYLE else cni_plots.COLOURS.get(mode, "")


def _rows(rows: Iterable[Row], workload: str, metric: str) -> list[Row]:
    return [row for row in rows if row["workload"] == workload and row["metric"] == metric]


def against_services(rows: Sequence[Row], label: str, log: bool) -> str:
    """One line per mode over the number of Services, with the interval of each point."""

    def draw(axes: Axes) -> None:
        for mode in _modes(rows):
            mine = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["services"])
            style = STYLE.get(mode, _OTHER)
            x = [row["services"] for row in mine]
            middle, low, high = _errors(mine)
            axes.errorbar(x, middle, yerr=[low, high], color=style.colour, fmt="none", capsize=3, elinewidth=1)
            axes.plot(
                x, middle, color=style.colour, marker=style.marker, linestyle=style.dashes, markersize=6, label=mode
            )
        axes.set_xlabel("Services")
        axes.set_ylabel(label)
        if log:
            axes.set_yscale("log")
            _log_ticks(axes)
        else:
            axes.margins(y=0.1)
            axes.set_ylim(bottom=0)
        _services_axis(axes, sorted({row["services"] for row in rows}))

    return _svg(draw, f"{label} against Services")


def distribution(rows: Sequence[Row]) -> str:
    """The share of connections that took longer than a time, on logarithmic axes, so that the tail is as visible as the
    middle."""

    def draw(axes: Axes) -> None:
        for mode in _modes(rows):
            style = STYLE.get(mode, _OTHER)
            ordered = sorted(value for row in rows if row["mode"] == mode for value in row["samples"])
            x, shares = _steps(ordered)
            axes.plot(x, shares, color=style.colour, linestyle=style.dashes, linewidth=1.5, label=mode)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_figure))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("microseconds")
        axes.set_ylabel("connections that took longer")

    return _svg(draw, "distribution of single connections")


def _steps(ordered: Sequence[float]) -> tuple[list[float], list[float]]:
    """About 400 points of that curve: the 100 slowest connections, and an even selection of the others."""
    count = len(ordered)
    places = sorted({*range(max(0, count - 100), count), *range(0, count, max(1, count // 300))})
    return [ordered[place] for place in places], [(count - place) / count for place in places]


def ratios(rows: Sequence[Row]) -> str:
    """The ratio to `direct` with its interval, with one group of bars per number of Services. 1 is the limit."""

    def draw(axes: Axes) -> None:
        sizes, modes = sorted({row["services"] for row in rows}), _modes(rows)
        width = 0.84 / max(1, len(modes))
        upright = len(sizes) * len(modes) > _BARS
        for place, mode in enumerate(modes):
            mine = {row["services"]: row for row in rows if row["mode"] == mode}
            there = [(index, mine[size]) for index, size in enumerate(sizes) if size in mine]
            x = [index + (place - (len(modes) - 1) / 2) * width for index, _ in there]
            y = [row["ratio_to_direct"] for _, row in there]
            error = [
                [max(0.0, row["ratio_to_direct"] - row["ratio_interval"][0]) for _, row in there],
                [max(0.0, row["ratio_interval"][1] - row["ratio_to_direct"]) for _, row in there],
            ]
            axes.bar(
                x,
                y,
                width * 0.88,
                color=STYLE.get(mode, _OTHER).colour,
                label=mode,
                yerr=error,
                capsize=2,
                ecolor="#222",
            )
            for left, value, row in zip(x, y, (row for _, row in there), strict=True):
                axes.annotate(
                    f"{value:.2f}",
                    (left, max(value, row["ratio_interval"][1])),
                    (0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    rotation=90 if upright else 0,
                )
        axes.axhline(1, color=STYLE["direct"].colour, linewidth=1)
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("Services")
        axes.set_ylabel("times direct")
        axes.margins(y=0.2 if upright else 0.12)

    return _svg(draw, "ratio to direct")


def _errors(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    """The middle of each row, and the distances to both ends of its interval."""
    middles = [stats.percentile(row["blocks"], 50) for row in rows]
    low = [max(0.0, middle - row["interval"][0]) for middle, row in zip(middles, rows, strict=True)]
    high = [max(0.0, row["interval"][1] - middle) for middle, row in zip(middles, rows, strict=True)]
    return middles, low, high


def _modes(rows: Sequence[Row]) -> list[str]:
    """The modes of the rows in the order of STYLE, so that the order is the same in all legends."""
    there = dict.fromkeys(row["mode"] for row in rows)
    return [mode for mode in STYLE if mode in there] + [mode for mode in there if mode not in STYLE]


def _services_axis(axes: Axes, sizes: Sequence[int]) -> None:
    if len(sizes) > 1:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06)


def _log_ticks(axes: Axes) -> None:
    """Set labelled ticks at the powers of ten, and also at 2 and 5 if there would be fewer than three."""
    low, high = axes.get_ylim()
    subs = (1.0,) if high / low > 500 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(_figure))
    axes.yaxis.set_minor_locator(NullLocator())


def _figure(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _svg(draw: Callable[[Axes], None], title: str) -> str:
    """An <svg> element that scales with its container. Its ids are unique to the figure."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
        axes = figure.subplots()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=6,
            frameon=False,
            fontsize=10,
            columnspacing=1.2,
            handlelength=2.6,
            handletextpad=0.5,
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    head, _, rest = svg.partition(">")
    words = [word for word in head.split() if not word.startswith(("width=", "height="))]
    return f'{" ".join(words)} role="img" aria-label="{title}">{rest}'
