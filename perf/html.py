"""A report as one HTML file without anything from outside: tables, and plots as inline SVG, for screen and paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from nodenet.errors import CannotRunError
from perf.report import TITLES, in_order, remarks, states

Row = dict[str, Any]

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fff;
  max-width: 68rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead { margin: 0 0 1.4rem; color: #555; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1.6rem 2.2rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; margin-bottom: .2rem; }
figcaption span { display: block; font-weight: 400; color: #666; font-size: .85rem; }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #999; }
th:first-child, td:first-child { text-align: left; }
td.last { text-align: left; white-space: normal; }
tr.direct td { color: #777; }
ul { padding-left: 1.2rem; }
li { margin: .2rem 0; }
@page { size: A4; margin: 14mm; }
@media print {
  html { font-size: 10.5px; }
  body { font-size: 1rem; max-width: none; margin: 0; padding: 0; }
  h2 { margin-top: 1.4rem; }
  .plots { grid-template-columns: 1fr 1fr; gap: 5mm; }
  .wide { overflow: visible; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  th, td { padding: .12rem .35rem; }
}
"""


def require() -> None:
    """Raises CannotRunError when the plotting library is not installed."""
    if find_spec("matplotlib") is None:
        raise CannotRunError("--html needs matplotlib, which is not installed", "pip install matplotlib")


def page(report: dict[str, Any]) -> str:
    """The whole page. Needs matplotlib."""
    rows = report["results"]
    sections = [
        _figures(rows),
        *(_table(report, workload) for workload in in_order(rows)),
        _growth(report),
        _section("Noise and remarks", _list(remarks(report))),
        _environment(report["meta"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nodenet bench</title><style>{_CSS}</style></head><body>"
        f"{_head(report['meta'])}{''.join(sections)}</body></html>\n"
    )


def _head(meta: dict[str, Any]) -> str:
    pinned = "not pinned" if meta["pinned_cpu"] is None else "on one core"
    words = (
        f"{meta['date'].replace('T', ' ')[:16]} UTC, kernel {meta['kernel']}, {meta['cpus']} × {meta['cpu']}. "
        f"{meta['rounds']} interleaved rounds of {meta['samples_per_block']} samples, client and server {pinned}, "
        f"{meta['backends_per_service']} backend(s) per Service."
    )
    return f'<h1>Service balancing: eBPF, iptables, nftables, IPVS</h1><p class="lead">{escape(words)}</p>'


def _figures(rows: Sequence[Row]) -> str:
    from perf import plots

    found: list[str] = []

    def add(title: str, words: str, chosen: list[Row], draw: Callable[[list[Row]], str]) -> None:
        if chosen:
            caption = f"<figcaption>{escape(title)}<span>{escape(words)}</span></figcaption>"
            found.append(f"<figure>{caption}{draw(chosen)}</figure>")

    for workload, what in (("crr", "Short connections"), ("rr", "Request and response"), ("udp", "First datagram")):
        latency = _rows(rows, workload, "latency")
        add(
            f"{what}: latency against Services",
            "median and 95 % interval of the blocks; direct is the limit",
            latency,
            lambda chosen, what=what: plots.against_services(chosen, f"{what}: latency", "microseconds", log=False),  # type: ignore[misc]
        )
        others = [row for row in latency if row["mode"] != "direct"]
        add(
            f"{what}: ratio to direct",
            "direct: pod to pod on a clean twin node",
            others,
            lambda chosen, what=what: plots.ratios(chosen, f"{what}: ratio to direct"),  # type: ignore[misc]
        )
    latency = _rows(rows, "crr", "latency")
    most = max((row["services"] for row in latency), default=0)
    add(
        f"Short connections: distribution at {most:,} Services",
        "every connection, outliers too; further left is better",
        [row for row in latency if row["services"] == most],
        lambda chosen: plots.distribution(chosen, "Distribution"),
    )
    add(
        "From empty to N Services",
        "seconds until the kernel has them all",
        _rows(rows, "program", "seconds"),
        lambda chosen: plots.against_services(chosen, "Programming time", "seconds", log=True),
    )
    add(
        "One endpoint changes",
        "milliseconds until the first connection reaches the new one",
        _rows(rows, "update", "first_connection"),
        lambda chosen: plots.against_services(chosen, "Update", "milliseconds", log=True),
    )
    return f'<div class="plots">{"".join(found)}</div>'


def _rows(rows: Iterable[Row], workload: str, metric: str) -> list[Row]:
    return [row for row in rows if row["workload"] == workload and row["metric"] == metric]


def _table(report: dict[str, Any], workload: str) -> str:
    rows = [row for row in report["results"] if row["workload"] == workload]
    head = ["mode", "Services", "figure", "p50", "95 % interval", "p99", "unit", "to direct", "to own pod"]
    lines = [_cells(report, row) for row in rows]
    used = [index for index in range(len(head)) if any(line[index] for line in lines)]
    kinds = [' class="direct"' if row["mode"] == "direct" else "" for row in rows]
    body = "".join(
        f"<tr{kind}>{''.join(f'<td>{escape(line[index])}</td>' for index in used)}</tr>"
        for kind, line in zip(kinds, lines, strict=True)
    )
    names = "".join(f"<th>{head[index]}</th>" for index in used)
    return _section(
        TITLES.get(workload, workload),
        f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>',
    )


def _cells(report: dict[str, Any], row: Row) -> list[str]:
    scale, unit = (2**20, "MiB") if row["unit"] == "bytes" else (1, row["unit"])
    ratio = "" if row["ratio_to_direct"] is None else f"{row['ratio_to_direct']:.2f}"
    return [
        row["mode"],
        f"{row['services']:,}",
        row["metric"].replace("_", " "),
        _number(row["p50"] / scale),
        " – ".join(_number(value / scale) for value in row["interval"]),
        _number(row["p99"] / scale),
        unit,
        ratio if states(report, row) else f"{ratio}?",
        f"{row['ratio_to_pod']:.2f}" if "ratio_to_pod" in row else "",
    ]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _growth(report: dict[str, Any]) -> str:
    if not report["slopes"]:
        return ""
    lines = [
        f"{entry['mode']}, {entry['workload']}: {entry['us_per_1000_services']:+.3f} µs per 1,000 Services "
        f"(95 % interval {entry['interval'][0]:.3f} – {entry['interval'][1]:.3f})"
        for entry in report["slopes"]
    ]
    return _section("Growth over direct, by least squares", _list(lines))


def _environment(meta: dict[str, Any]) -> str:
    keys = ("kernel", "kernel_version", "cpu", "cpus", "hypervisor", "governor", "load", "load_after", "bpf_jit")
    lines = [(key.replace("_", " "), _words(meta.get(key))) for key in (*keys, "python", "nodenet", "seconds")]
    lines += [(f"version of {mode}", version) for mode, version in meta["tools"].items()]
    lines += [(f"mitigation {name}", words) for name, words in meta["mitigations"].items() if words != "Not affected"]
    body = "".join(f'<tr><td>{escape(key)}</td><td class="last">{escape(value)}</td></tr>' for key, value in lines)
    return _section("Where it ran", f"<table><tbody>{body}</tbody></table>")


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{number:.2f}" for number in value)
    return "not told by this machine" if value is None else str(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
