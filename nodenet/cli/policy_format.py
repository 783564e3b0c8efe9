"""Formats matrices and explanations as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netpolicy.matrix import Cell

_VERDICTS = {True: "ALLOWED", False: "DENIED"}


def grid(cells: Sequence[Cell]) -> str:
    """A table with one row per source and one numbered column per destination and port. `.`: allowed, `X`: denied,
    blank: not computed."""
    if not cells:
        return "no pod declares a port; give ports with --ports"
    rows = list(dict.fromkeys(cell.source for cell in cells))
    columns = sorted({(cell.destination, cell.port, str(cell.protocol)) for cell in cells})
    marks = {(c.source, c.destination, c.port, str(c.protocol)): "." if c.allowed else "X" for c in cells}
    wide = max(len(row) for row in rows)
    narrow = len(str(len(columns))) + 1
    head = "from \\ to".ljust(wide) + "".join(str(n).rjust(narrow) for n in range(1, len(columns) + 1))
    lines = [row.ljust(wide) + "".join(marks.get((row, *c), " ").rjust(narrow) for c in columns) for row in rows]
    legend = [f"{n:>{narrow}}  {to} {port}/{protocol}" for n, (to, port, protocol) in enumerate(columns, 1)]
    denied = sum(not cell.allowed for cell in cells)
    summary = f"{len(cells)} connections: {len(cells) - denied} allowed (.), {denied} denied (X)"
    return "\n".join(line.rstrip() for line in [head, *lines, "", "to", *legend, "", summary])


def explanation(answer: Mapping[str, Any], alike: int) -> str:
    """The text of one answer (netpolicy.explain.as_json). `alike`: the number of further connections with the same
    answer."""
    source, target = answer["from"]["name"], answer["to"]["name"]
    asked = f"{answer['port']}/{answer['protocol']}" if answer["port"] else answer["protocol"]
    via = f" (behind {answer['service']})" if answer.get("service") else ""
    more = f"  (and {alike} more with the same answer)" if alike else ""
    return "\n".join(
        [
            f"{source} -> {target} {asked}{via}: {_VERDICTS[answer['allowed']]}{more}",
            *_side(f"egress of {source}", answer["egress"]),
            *_side(f"ingress of {target}", answer["ingress"]),
        ]
    )


def _side(title: str, side: Mapping[str, Any]) -> list[str]:
    lines = [f"  {title}: {_VERDICTS[side['allowed']].lower()}"]
    if side["allowedBy"]:
        return lines + [f"    by {rule['namespace']}/{rule['policy']} {rule['field']}" for rule in side["allowedBy"]]
    lines.append(f"    {side['summary']}")
    if side["isolatedBy"]:
        lines.append(f"    isolated by {', '.join(side['isolatedBy'])}")
    for miss in side["notAllowedBy"]:
        place = f" {miss['rule']['field']}" if miss["rule"] else ""
        lines.append(f"    {miss['policy']}{place}: {miss['why']}")
    if side["missing"]:
        lines.append(f"    missing: {side['missing']}")
    return lines
