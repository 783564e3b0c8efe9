"""Clocks that a test sets, as a process sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nodenet.errors import BadInputError
from nodenet.lab import clocks
from nodenet.lab.clocks import Clock

DAY = 86400.0
LOOK = """
import datetime, json, os, pathlib, sys, time
for line in sys.stdin:
    new = pathlib.Path(line.strip())
    new.touch()
    print(json.dumps({"time": time.time(), "ns": time.time_ns() / 1e9, "datetime": datetime.datetime.now().timestamp(),
        "monotonic": time.monotonic(), "new": new.stat().st_mtime, "old": os.stat(sys.argv[1]).st_mtime}), flush=True)
"""


@pytest.fixture
def clock(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Clock:
    clocks.install(tmp_path_factory.getbasetemp(), tmp_path)
    node = tmp_path / "node1"
    node.mkdir()
    return Clock(tmp_path, node)


def test_a_running_process_sees_steps_and_only_the_wall_clock_moves(clock: Clock, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    environment = {**os.environ, **clock.environment()}
    argv = [sys.executable, "-c", LOOK, str(old)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = iter(process.stdout)

        def look(name: str) -> dict[str, Any]:
            """What the process sees, less what this one does."""
            before = time.time(), time.monotonic()
            print(tmp_path / name, file=process.stdin, flush=True)
            found: dict[str, Any] = json.loads(next(lines))
            old_time = found.pop("old") - old.stat().st_mtime
            monotonic = found.pop("monotonic") - before[1]
            return {key: value - before[0] for key, value in found.items()} | {"m": monotonic, "old": old_time}

        for step, offset in ((0, 0), (DAY, DAY), (-3 * DAY, -2 * DAY), (2 * DAY, 0)):
            if step:
                clock.step(step)
            assert clock.offset() == pytest.approx(offset, abs=0.001)
            seen = look(f"new{step}")
            # Within a minute: a slow machine is not a wrong clock.
            assert [seen[key] for key in ("time", "ns", "datetime", "new")] == pytest.approx([offset] * 4, abs=60)
            # What was written before the step keeps its time; a step does not touch the monotonic clock.
            assert seen["old"] == pytest.approx(0, abs=0.001)
            assert seen["m"] == pytest.approx(0, abs=60)
        process.stdin.close()


def test_more_steps_than_the_file_holds(clock: Clock) -> None:
    for _ in range(clocks.STEPS + 20):
        clock.step(1)
    assert clock.offset() == clocks.STEPS + 20
    look = [sys.executable, "-c", "import time; print(time.time())"]
    environment = {**os.environ, **clock.environment()}
    shown = float(subprocess.run(look, env=environment, capture_output=True, text=True, check=True).stdout)
    assert shown - time.time() == pytest.approx(clock.offset(), abs=60)


@pytest.mark.parametrize("seconds", [-1e11, 1e11])
def test_a_time_that_cannot_be_shown_is_refused(clock: Clock, seconds: float) -> None:
    with pytest.raises(BadInputError, match="expected a time after 1970"):
        clock.step(seconds)
    assert clock.offset() == 0


def test_a_lab_without_settable_clocks_says_how_to_have_them(tmp_path: Path) -> None:
    clock = Clock(tmp_path, tmp_path)
    assert clock.environment() == {}
    assert clock.offset() == 0
    with pytest.raises(BadInputError, match="cannot be set") as caught:
        clock.step(1)
    assert "--settable-clock" in caught.value.hint
