"""A report as one self-contained HTML file: tables, and plots as inline SVG, for screen and paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from nodenet.errors import CannotRunError
from perf import counted
from perf.report import backends, how_often, remarks
from perf.tables import Table, tables

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fff;
  max-width: 68rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead { margin: 0 0 1.4rem; color: #555; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1.6rem 2.2rem; }
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
tr.direct td { color: #6b6b6b; }
tr.next td { border-top: 1px solid #999; }
td:first-child::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .5em;
  background: var(--mode, transparent); }
section.beside { border-left: 4px solid #d8d8d8; padding-left: 1.2rem; margin-top: 2.4rem; }
section.beside h2 { margin-top: 0; }
section.beside h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
li { margin: .2rem 0; }
@page { size: A4; margin: 14mm; }
@media print {
  html { font-size: 10.5px; }
  body { font-size: 1rem; max-width: none; margin: 0; padding: 0; }
  h2 { margin-top: 1.4rem; }
  .plots { grid-template-columns: 1fr 1fr; gap: 5mm; }
  .wide { overflow: visible; }
  svg { max-height: 47mm; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  th, td { padding: .12rem .35rem; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""


def require() -> None:
    """Raises CannotRunError if the plotting library is not installed."""
    if find_spec("matplotlib") is None:
        raise CannotRunError("--html needs matplotlib, which the extra bench brings", "pip install 'nodenet[bench]'")


def page(report: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> str:
    """The complete page. `beside`: reports to show in separate sections. Needs matplotlib."""
    if counted.is_counted(report):
        sections = [_figures(report), *map(_table, tables(report)), _section("Remarks", _list(remarks(report)))]
    else:
        sections = [
            _figures(report),
            *map(_table, tables(report)),
            _section("Noise and remarks", _list(remarks(report))),
            *map(_beside, beside),
            _environment(report["meta"]),
        ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nodenet bench</title><style>{_CSS}</style></head><body>"
        f"{_head(report)}{''.join(sections)}</body></html>\n"
    )


def _head(report: dict[str, Any]) -> str:
    meta = report["meta"]
    if counted.is_counted(report):
        title = "What a Service costs, in instructions: eBPF, iptables, nftables, IPVS"
        words = " ".join([". ".join(line.strip() for line in counted.heading(meta)[:2]) + ".", counted.EXPLANATION])
    else:
        only_cni = {row["workload"] for row in report["results"]} == {"cni"}
        title = "What a pod start costs" if only_cni else "What a Service costs: eBPF, iptables, nftables, IPVS"
        pinned = "not pinned" if meta["pinned_cpu"] is None else "on one core"
        words = (
            f"{meta['date'].replace('T', ' ')[:16]} UTC, kernel {meta['kernel']}, {meta['cpus']} \u00d7 {meta['cpu']}."
        )
        if meta.get("epochs", 1):
            words += f" {how_often(meta).capitalize()}, client and server {pinned}, {backends(meta)}."
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(words)}</p>'


def _figures(report: dict[str, Any]) -> str:
    from perf import plots

    found = [
        f"<figure><figcaption>{escape(plot.title)}<span>{escape(plot.words)}</span></figcaption>{plot.draw()}</figure>"
        for plot in plots.of(report)
    ]
    return f'<div class="plots">{"".join(found)}</div>'


def _table(table: Table) -> str:
    return _section(table.title, _table_body(table))


def _table_body(table: Table) -> str:
    from perf import plots

    used = [index for index in range(len(table.head)) if any(line[index] for line in table.lines)]
    body, last = [], None
    for mode, line in zip(table.modes, table.lines, strict=True):
        kinds = ["direct"] if mode == "direct" else []
        if last is not None and line[1] != last:
            kinds.append("next")
        last = line[1]
        colour = f' style="--mode: {plots.colour(mode)}"' if plots.colour(mode) else ""
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        body.append(f"<tr{kind}{colour}>{''.join(f'<td>{escape(_dash(line[index]))}</td>' for index in used)}</tr>")
    names = "".join(f"<th>{escape(_dash(table.head[index]))}</th>" for index in used)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _dash(words: str) -> str:
    """Use an en dash between two figures."""
    return words.replace(" - ", " \u2013 ")


def _beside(report: dict[str, Any]) -> str:
    """A section for figures of another run, which may have another unit and be of a virtual machine."""
    meta, there = report["meta"], tables(report)
    if counted.is_counted(report):
        title, words, lines = "counted in a virtual machine", counted.EXPLANATION, counted.heading(meta)
    else:
        title = "in a virtual machine" if meta.get("virtual") else "another run"
        words, lines = f"{meta['date'].replace('T', ' ')[:16]} UTC, kernel {meta['kernel']}.", []
    parts = [f"<p>{escape(words)}</p>", _figures(report)]
    parts += [f"<h3>{escape(table.title)}</h3>{_table_body(table)}" for table in there]
    parts.append(_list([*lines, *remarks(report)]))
    return f'<section class="beside"><h2>Beside it: {title}</h2>{"".join(parts)}</section>'


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
    return "unknown on this machine" if value is None else str(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
