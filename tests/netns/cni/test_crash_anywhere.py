"""A verb that is killed before any of its lines, not only between its steps: nothing is left after DEL, GC or the next
agent's start. One that SIGTERM ends there leaves nothing by itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nodenet.cni
import nodenet.link
from nodenet.cni import signals
from nodenet.cni.plugin import Plugin
from nodenet.cni.request import parse
from nodenet.link import netns
from tests.netns.cni.test_crash import CLEANERS, KEYS

pytestmark = pytest.mark.kernel
_OURS = (str(Path(nodenet.cni.__file__).parent), str(Path(nodenet.link.__file__).parent))
# Of some two thousand lines every so many is tried. 1 takes a quarter of an hour.
EVERY = int(os.environ.get("NODENET_CRASH_EVERY", "149"))


def run(world: Any, verb: str, pod: str, number: int, line: int) -> int:
    """A verb in a process of its own that gets a signal before its line number `line`; its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        if event == "line":
            count += 1
            if count == line:
                sys.settrace(None)
                os.kill(os.getpid(), number)
        return step

    status = 3
    try:
        netns.enter(world.node)
        signals.block_termination_signals()
        plugin = Plugin(step=signals.raise_if_signalled)
        plugin.node  # noqa: B018 - opened, as a process that works alone has it
        sys.settrace(step)
        reply = plugin.run(parse(world.env(verb, "c1", pod), world.conf(**KEYS)))
        status = 0 if reply.status == 0 else 4
    except SystemExit as end:
        status = int(str(end)) & 127
    finally:
        sys.settrace(None)
        os._exit(status)


def ended(status: int, number: int) -> bool:
    """Whether the signal came before the verb's end."""
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == number
        return True
    assert os.WEXITSTATUS(status) in (0, number)
    return os.WEXITSTATUS(status) == number


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_killed(world: Any, verb: str) -> None:
    pod, line, tried = world.pod(), 1, 0
    while True:
        if verb == "DEL":
            assert world.call("ADD", "c1", pod, world.conf(**KEYS)).status == 0
        if not ended(run(world, verb, pod, signal.SIGKILL, line), signal.SIGKILL):
            break
        CLEANERS[tried % len(CLEANERS)](world, pod)
        if verb == "DEL" or CLEANERS[tried % len(CLEANERS)].__name__ == "by_the_next_agent":
            CLEANERS[0](world, pod)
        assert (world.interfaces(pod), world.left()) == (["lo"], []), (line, CLEANERS[tried % len(CLEANERS)])
        line, tried = line + EVERY, tried + 1
    assert tried > 5


def test_ended_by_sigterm(world: Any) -> None:
    pod, line, tried = world.pod(), 1, 0
    while ended(run(world, "ADD", pod, signal.SIGTERM, line), signal.SIGTERM):
        assert (world.interfaces(pod), world.left()) == (["lo"], []), line
        line, tried = line + EVERY, tried + 1
    assert tried > 5
