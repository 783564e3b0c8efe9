"""Compiles regular expressions at build time, for the self-contained plugin (nodenet/cni/bundle.py)."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# The two steps of re._compiler.compile; we keep the result between them.
_parser: Any = importlib.import_module("re._parser")
_compiler: Any = importlib.import_module("re._compiler")

# Arguments of _sre.compile after the expression itself: flags, code, groups, their numbers by name, names by number.
Compiled = tuple[int, tuple[int, ...], int, dict[str, int], tuple[str | None, ...]]


def patterns(found: Mapping[str, Path]) -> dict[tuple[str | bytes, int], Compiled]:
    """The compiled form of each expression in the plugin's own modules and in json: arguments of _sre.compile, by
    expression and flags. Compiling them at run time would take longer than matching."""
    made = {}
    for name, path in found.items():
        if name.partition(".")[0] not in ("nodenet", "json"):
            continue
        for pattern, flags in _expressions(name, path):
            parsed = _parser.parse(pattern, flags)
            code = tuple(map(int, _compiler._code(parsed, flags)))
            names = dict(parsed.state.groupdict)
            by_index: list[str | None] = [None] * parsed.state.groups
            for group, index in names.items():
                by_index[index] = group
            made[pattern, flags] = (flags | parsed.state.flags, code, parsed.state.groups - 1, names, tuple(by_index))
    return made


def _expressions(name: str, path: Path) -> Iterator[tuple[str | bytes, int]]:
    """The expression and flags of every call of re.compile(), re.fullmatch() and so on with constant arguments."""
    values = vars(importlib.import_module(name))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        place = {"compile": 1, "match": 2, "fullmatch": 2, "search": 2}.get(node.func.attr)
        if place is None or not isinstance(node.func.value, ast.Name) or node.func.value.id != "re":
            continue
        flags: list[ast.expr] = [word.value for word in node.keywords if word.arg == "flags"] or node.args[
            place : place + 1
        ]
        try:
            pattern, number = (
                eval(compile(ast.Expression(part), name, "eval"), values)  # only our own constants, at build time
                for part in (node.args[0], *(flags or [ast.Constant(0, lineno=0, col_offset=0)]))
            )
        except NameError:
            continue
        if isinstance(pattern, str | bytes):
            yield pattern, int(number)
