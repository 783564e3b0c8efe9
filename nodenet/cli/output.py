"""Tables, JSON and YAML for all list and show commands. Data goes to stdout; logs and notes go to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import click

Row = Mapping[str, Any]
_F = TypeVar("_F", bound=Callable[..., Any])


class Format(StrEnum):
    """Values of -o."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Column(NamedTuple):
    """One column of a table. `key` is a field of the row, with dots for nested fields; `show` formats the value."""

    title: str
    key: str
    show: Callable[[Any], str] | None = None


def output_option(command: _F) -> _F:
    """The shared `-o table|json|yaml`; the command's parameter is `output: Format`."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice([f.value for f in Format]),
        callback=lambda _ctx, _param, value: Format(value),
        default=Format.TABLE.value,
        show_default=True,
        help="Output format.",
    )
    return option(command)


def emit(rows: Iterable[Row], columns: Sequence[Column], output: Format) -> None:
    """Print a list. A table shows only `columns`; JSON and YAML show all fields of all rows in one array."""
    click.echo(render(rows, columns, output))


def emit_document(data: object, output: Format, text: str) -> None:
    """Print one object: `text` for the format table, else the object."""
    click.echo(text if output is Format.TABLE else encode(data, output))


def render(rows: Iterable[Row], columns: Sequence[Column], output: Format) -> str:
    """The text that `emit` prints, without the final newline."""
    return table(rows, columns) if output is Format.TABLE else encode(list(rows), output)


def encode(data: object, output: Format) -> str:
    """JSON (indented) or YAML. Types that JSON does not have (addresses, paths) become strings."""
    if output is Format.JSON:
        return json.dumps(data, indent=2, default=_plain, ensure_ascii=False)
    import yaml  # imported only for YAML, because it is slow

    plain = json.loads(json.dumps(data, default=_plain))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)).rstrip("\n")


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Left-aligned columns separated by two spaces; columns of numbers are right-aligned. Without rows only the
    header."""
    values = [[_lookup(row, column.key) for column in columns] for row in rows]
    cells = [[_cell(value, column) for value, column in zip(line, columns, strict=True)] for line in values]
    lines = [[column.title for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    right = [bool(values) and all(_is_number(line[i]) for line in values) for i in range(len(columns))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _lookup(row: Row, key: str) -> Any:
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any, column: Column) -> str:
    if column.show is not None:
        return column.show(value)
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(str(v) for v in value) or "-"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
