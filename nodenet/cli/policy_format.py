"""Formats matrices, explanations, suggestions and differences as text. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netpolicy.diff import Difference, Effect
from netpolicy.matrix import Cell
from netpolicy.recorded import Seen
from netpolicy.suggest import Row, Suggestion
from nodenet.cli.output import Column, table

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
        return lines + [f"    by {_rule(rule)}" for rule in side["allowedBy"]] + _tiers(side)
    lines.append(f"    {side['summary']}")
    lines += [f"    by {_rule(rule)}" for rule in side["deniedBy"]]
    lines += _tiers(side)
    if side["isolatedBy"]:
        lines.append(f"    isolated by {', '.join(side['isolatedBy'])}")
    for miss in side["notAllowedBy"]:
        place = f" {miss['rule']['field']}" if miss["rule"] else ""
        lines.append(f"    {miss['policy']}{place}: {miss['why']}")
    if side["missing"]:
        lines.append(f"    missing: {side['missing']}")
    return lines


def _tiers(side: Mapping[str, Any]) -> list[str]:
    """The rules that left the decision to a later tier, and what is not in force as it is written."""
    passed = [rule for step in side["tiers"] if step["answer"] == "next" for rule in step["rules"]]
    return [f"    passed on by {_rule(rule)}" for rule in passed] + [f"    note: {note}" for note in side["notes"]]


def _rule(rule: Mapping[str, Any]) -> str:
    owner = f"{rule['namespace']}/{rule['policy']}" if rule["namespace"] else f"ClusterNetworkPolicy {rule['policy']}"
    return f"{owner} {rule['field']}" + (f" ({rule['name']})" if rule.get("name") else "")


def connections(rows: Iterable[Row]) -> str:
    """A table of the connections that a suggestion allows."""
    columns = [Column("FROM", "from"), Column("TO", "to"), Column("PORT", "what"), Column("TIMES", "times")]
    return table([{**row.as_json(), "what": f"{row.port}/{row.protocol}"} for row in rows], columns)


def suggestion_manifests(found: Suggestion) -> str:
    """The policies as YAML documents, with what to look at as comments."""
    import yaml  # imported only here, because it is slow

    lines = [f"# {len(found.policies)} policies for {len(found.connections)} kinds of connections."]
    if found.once:
        lines.append("# Seen once only; remove the rule if it was a mistake:")
        lines += [f"#   {_row(row)}" for row in found.once]
    if found.unseen:
        lines.append(f"# Workloads in no recorded connection: {', '.join(found.unseen)}.")
    documents = [str(yaml.safe_dump(policy, sort_keys=False, allow_unicode=True)) for policy in found.policies]
    return "\n".join(map(_printable, lines)) + "\n" + "---\n".join(documents).rstrip("\n")


def suggestion_notes(found: Suggestion, denied: int, existing: int) -> list[str]:
    """What a reader of the policies must know."""
    notes = []
    if found.once:
        notes.append(f"seen once only: {some([_row(row) for row in found.once])}")
    if found.not_covered:
        notes.append(
            "ICMP was seen, and no rule can name it, so it will be denied: "
            + some([_row(row) for row in found.not_covered])
        )
    if found.unseen:
        notes.append(f"workloads in no recorded connection: {some(found.unseen)}; see --default-deny")
    if found.merged:
        notes.append(f"workloads that no label tells apart share a policy: {some(found.merged)}")
    every = [policy["metadata"] for policy in found.policies if _selects_all(policy["spec"])]
    if every:
        names = some([f"{each['namespace']}/{each['name']}" for each in every])
        notes.append(f"these policies select every pod of their namespace, because their pods have no labels: {names}")
    if denied:
        notes.append(f"{denied} connections were denied when they were recorded; they are not allowed")
    if existing:
        notes.append(
            f"these namespaces have {existing} policies already, and policies only add: remove them if only what was "
            "seen is to be allowed"
        )
    return [_printable(note) for note in notes]


def _selects_all(spec: Mapping[str, Any]) -> bool:
    """True for a policy with rules whose podSelector is empty; a default deny has no rules."""
    return not spec["podSelector"] and ("ingress" in spec or "egress" in spec)


def changes(found: Difference) -> str:
    """A table with one row for each pair of workloads and port, and a summary."""
    words = {True: "allowed", False: "denied"}
    groups = Counter(
        (c.source_group, c.destination_group, f"{c.port}/{c.protocol}", words[c.before], words[c.after])
        for c in found.changes
    )
    columns = [Column(name.upper(), name) for name in ("from", "to", "port", "before", "after", "connections")]
    names = [column.key for column in columns]
    rows = [dict(zip(names, (*key, count), strict=True)) for key, count in sorted(groups.items())]
    opened = sum(change.after for change in found.changes)
    if not rows:
        return f"{found.compared} connections compared: no difference"
    summary = f"{found.compared} connections compared: {opened} would be allowed, {len(found.changes) - opened} denied"
    return f"{table(rows, columns)}\n\n{summary}"


def effect(found: Effect, times: Mapping[Seen, int]) -> str:
    """What becomes of recorded connections."""
    lines = [f"{len(times)} recorded kinds of connections: {len(found.cut)} would be cut"]
    lines += [f"  cut: {seen} ({times[seen]} times)" for seen in found.cut]
    lines += [f"  opened: {seen} (was denied)" for seen in found.opened]
    lines += [f"  denied by both sets: {seen} ({times[seen]} times)" for seen in found.denied]
    return "\n".join(map(_printable, lines))


def _row(row: Row) -> str:
    port = f" {row.port}/{row.protocol}" if row.port else ""
    return f"{row.source} -> {row.destination}{port}"


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _printable(text: str) -> str:
    """Names in flows come from the network: a line feed in one would end a comment."""
    return "".join(char if char.isprintable() else "?" for char in text)
