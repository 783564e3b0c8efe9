"""A rule of the project: a function takes at most six arguments; more of them want a value of their own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 6
# Options of a command are arguments of its function (nodenet/cli). The others may become fewer, not more.
KNOWN = {
    "nodenet/cni/detach.py: detach",
    "nodenet/lab/apiserver/server.py: __init__",
    "nodenet/lab/controllers/slices_plan.py: _fill",
    "nodenet/lab/process.py: spawn",
    "nodenet/link/routes.py: _body",
    "nodenet/link/veth.py: create",
}


def long_ones() -> Iterator[str]:
    for package in ("netpolicy", "nodenet"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("nodenet/cli/"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _count(node) > MOST:
                    yield f"{name}: {node.name}"


def _count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_have_at_most_six_arguments() -> None:
    assert set(long_ones()) == KNOWN
