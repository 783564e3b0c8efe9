"""Changes policy all the time under traffic, and checks every packet: `python -m perf.switch`.

An agent changes rules, regions, isolation flags and the identities of several pods at once, as one change each. It is
killed again and again, during its writes. Meanwhile datagrams run through the programs (BPF_PROG_TEST_RUN). Each must
pass or drop as some state does that was in force while it was sent; and after a kill exactly one state is in force.
Exit status 1 if one packet or one restart was wrong. With --mutant not-atomic, changes come into force entry by entry:
this must fail.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from nodenet.bpf import build, loader
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.errors import CannotRunError, NodenetError
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.maps import TABLES, Maps, Outcome
from nodenet.reconcile.plan import SERVICE_TABLES
from perf.node import own_mounts
from perf.switch_parts import MUTANTS, SENDERS, Sent, Shared, agent, send
from perf.switch_world import World

_CACHE = Path("/var/cache/nodenet")
# A kill comes within this time of the begin of a change, which takes about a millisecond.
_KILL_WITHIN = 0.002
_POLL = 0.001
_FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Result:
    """`mixtures`: restarts that found a mixture. `changes`: states that were in force."""

    packets: int = 0
    during: int = 0
    dropped: int = 0
    wrong: int = 0
    changes: int = 0
    writes: int = 0
    kills: int = 0
    seconds: float = 0.0
    mixtures: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong and not self.mixtures

    def text(self) -> str:
        lines = [
            f"{self.packets} packets, {self.during} of them while a change was made; {self.dropped} dropped",
            f"{self.changes} changes with {self.writes} writes of entries, {self.kills} kills, {self.seconds:.0f} s",
            f"{self.wrong} packets were wrong, {len(self.mixtures)} restarts found a mixture",
        ]
        return "\n".join([*lines, *self.examples, *self.mixtures[:10]])


@dataclass(frozen=True, slots=True)
class Goal:
    """A run ends when all of it is reached, or, with a mutant, at the first wrong restart."""

    packets: int
    changes: int
    kills: int
    # Seconds after which the run is given up.
    limit: float = 1800.0


class _Process:
    """A forked process. Its result is what its function returns."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._results, results = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_report, args=(results, function, arguments), daemon=True)
        self._process.start()
        results.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def result(self) -> Any:
        """Wait for the result. Raises CannotRunError if the process died without one."""
        try:
            found = self._results.recv()
        except EOFError as error:
            raise CannotRunError("a process of the test died; its error is above") from error
        self._process.join()
        return found


def _report(results: Any, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    results.send(function(*arguments))


def run(folder: Path, goal: Goal, seed: int = 1, mutant: str = "") -> Result:
    """Run until the goal is reached. `folder`: in a bpffs. Raises CannotRunError if it is not reached in time."""
    pins = Pins(folder)
    loaded = loader.load(build.build_all(_CACHE), loader.DatapathConfig(trace_events=False), pins)
    tables = {name: BpfTable(name, pins.map(name)) for name in TABLES}
    started = time.monotonic()
    try:
        result = _run(loaded.programs["endpoint_egress"], tables, goal, World(seed), mutant)
    finally:
        for table in tables.values():
            table.close()
        loader.close(loaded)
        pins.remove()
    result.seconds = time.monotonic() - started
    return result


def _run(program: int, tables: Mapping[str, BpfTable], goal: Goal, world: World, mutant: str) -> Result:
    shared, result = Shared(), Result()
    _fill(tables, world)
    senders = [_Process(send, world, program, shared, number) for number in range(SENDERS)]
    try:
        _disturb(partial(_Process, agent, world, tables, shared, mutant), shared, goal, result)
    finally:
        shared.stop()
        parts: list[Sent] = [sender.result() for sender in senders]
    for part in parts:
        result.packets += part.packets
        result.during += part.during
        result.dropped += part.dropped
        result.wrong += part.wrong
        result.examples += part.examples
    result.changes, result.writes = shared.done, shared.writes
    return result


def _fill(tables: Mapping[str, BpfTable], world: World) -> None:
    maps, outcome = Maps(tables, NoPrograms()), Outcome(0)
    maps.read(outcome)
    maps.write({**{name: {} for name in SERVICE_TABLES}, **world.tables(0)}, outcome)
    if outcome.errors:
        raise outcome.errors[0]


def _disturb(start: Callable[[], _Process], shared: Shared, goal: Goal, result: Result) -> None:
    """Let an agent work, and kill it at evenly spread times, in the middle of a change. Returns when the goal is
    reached."""
    choice, end, current = random.Random(0), time.monotonic() + goal.limit, start()
    while shared.packets < goal.packets or shared.done < goal.changes or result.kills < goal.kills:
        if not current.alive:
            result.mixtures.append(current.result())
            return
        if time.monotonic() > end:
            raise CannotRunError(
                f"not finished after {goal.limit:.0f} s: {shared.packets} packets, {shared.done} changes"
            )
        share = min(shared.packets / max(1, goal.packets), shared.done / max(1, goal.changes))
        if result.kills < goal.kills and share >= result.kills / goal.kills and shared.started > shared.done:
            time.sleep(choice.uniform(0, _KILL_WITHIN))
            current.kill()
            result.kills += 1
            current = start()
        time.sleep(_POLL)
    shared.stop()
    if text := current.result():
        result.mixtures.append(text)


@click.command()
@click.option("--packets", default=1_000_000, show_default=True, help="Send at least so many.")
@click.option("--changes", default=10_000, show_default=True, help="Make at least so many changes.")
@click.option("--kills", default=50, show_default=True, help="Kill so many agents.")
@click.option("--seed", default=1, show_default=True)
@click.option("--seconds", default=1800.0, show_default=True, help="Give up after this time.")
@click.option("--mutant", default="", type=click.Choice(["", *MUTANTS]), help="Change the agent so that it must fail.")
def switch(packets: int, changes: int, kills: int, seed: int, seconds: float, mutant: str) -> None:
    """Change policy under traffic, and check that no packet meets a mixture of two states."""
    with own_mounts() as folder:
        result = run(folder / "bpf" / "switch", Goal(packets, changes, kills, seconds), seed, mutant)
    click.echo(result.text())
    if not result.ok:
        raise SystemExit(1)


def main() -> None:
    try:
        switch.main(prog_name="python -m perf.switch", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"switch: {error}", err=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
