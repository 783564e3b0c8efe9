"""The picture of imports in docs/architecture.md is what the code does."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Every room may import errors; fakes and the entry point are no rooms.
_LEFT_OUT = {"errors", "testing", "__main__"}

Graph = dict[str, set[str]]


def imported(file: Path) -> set[str]:
    """Rooms that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"nodenet.{alias.name}" for alias in node.names] if node.module == "nodenet" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for package, _, rest in (name.partition(".") for name in names):
            found |= {rest.split(".")[0]} if package == "nodenet" and rest else {package} & {"netpolicy"}
    return found


def rooms() -> Graph:
    graph: Graph = defaultdict(set)
    for file in (ROOT / "nodenet").rglob("*.py"):
        place = file.relative_to(ROOT / "nodenet")
        room = place.parts[0].removesuffix(".py")
        if room != "__init__" and room not in _LEFT_OUT:
            graph[room] |= imported(file) - _LEFT_OUT - {room}
    return graph


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        for room in graph.get(queue.pop(), set()) - found:
            found.add(room)
            queue.append(room)
    return found


def reduced(graph: Graph) -> Graph:
    """Without the arrows that follow from others."""
    return {
        room: {one for one in targets if not any(one in reachable(graph, other) for other in targets - {one})}
        for room, targets in graph.items()
        if targets
    }


def drawn() -> Graph:
    (picture,) = re.findall(r"```mermaid\ngraph TD\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    graph: Graph = {}
    for line in picture.strip().splitlines():
        room, targets = line.strip().split(" --> ")
        assert room not in graph
        graph[room] = set(targets.split(" & "))
    return graph


def test_no_room_imports_itself_through_others() -> None:
    graph = rooms()
    assert len(graph) > 20
    assert [room for room in graph if room in reachable(graph, room)] == []


def test_the_picture_has_every_arrow_and_no_other() -> None:
    assert drawn() == reduced(rooms())
