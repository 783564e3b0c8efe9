"""Measures two source trees in turn in one run, so that the machine's noise affects both and their ratio is
meaningful."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nodenet.errors import CannotRunError

ROOT = Path(__file__).parents[1]


class Worker:
    """A process that measures one tree. Both trees use this tree's `script`, which imports the modules of `tree`.

    The script writes a JSON list of its scenarios, then for each line `[scenario, count]` one number.
    """

    def __init__(self, stack: ExitStack, tree: Path, script: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), *arguments],
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._process.wait, 30)
        stack.callback(self._process.kill)
        self.scenarios: list[str] = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CannotRunError(f"a worker ended with {self._process.wait(30)}; its message is above")
        return line

    def block(self, scenario: str, count: int) -> float:
        """Measure a scenario with `count` repetitions."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([scenario, count]) + "\n")
        self._process.stdin.flush()
        return float(self._line())


def compare(base: Worker, new: Worker, rounds: int, count: int) -> dict[str, dict[str, Any]]:
    """{scenario: {"base" and "new": lowest figure, "ratio": median of the rounds' ratios, "ratios": their
    quartiles}}"""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in new.scenarios}
    for number in range(rounds + 1):
        for name, seen in pairs.items():
            order = (base, new) if number % 2 else (new, base)
            figures = {worker: worker.block(name, count) for worker in order}
            if number:  # the first round warms up
                seen.append((figures[base], figures[new]))
    found: dict[str, dict[str, Any]] = {}
    for name, seen in pairs.items():
        ratios = [mine / other for other, mine in seen if other]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {
            "base": min(other for other, _ in seen),
            "new": min(mine for _, mine in seen),
            "ratio": round(middle, 3),
            "ratios": [round(low, 3), round(high, 3)],
        }
    return found


def table(found: dict[str, dict[str, Any]], title: str) -> list[str]:
    """The result of `compare` as lines of a table."""
    lines = [f"{title:38} {'base':>7} {'new':>7}  ratio (quartiles of the rounds)"]
    for name, entry in found.items():
        low, high = entry["ratios"]
        lines.append(
            f"{name:38} {entry['base']:7.0f} {entry['new']:7.0f}  {entry['ratio']:.3f} ({low:.3f} - {high:.3f})"
        )
    return lines
