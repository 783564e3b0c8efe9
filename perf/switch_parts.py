"""The processes of perf/switch.py: an agent that changes the maps, and senders that check what happens to packets."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nodenet.bpf import libbpf
from nodenet.bpf.grace import ProgramsGrace
from nodenet.bpf.packet_run import TC_ACT_SHOT, RunOptions
from nodenet.bpf.tables import BpfTable
from nodenet.reconcile.maps import Maps, Outcome
from nodenet.reconcile.plan import SERVICE_TABLES, Tables
from nodenet.reconcile.switch import SWITCHED, TRIES, VERSIONS, Entry, covering, prefix_lengths
from perf.switch_world import PROBES, World, set_port

SENDERS = 2
# Places of Shared: the numbers of all, then the packets of each sender.
_STARTED, _DONE, _WRITES, _STOP, _PACKETS = range(5)
_FIXED_PORT = 500
_FIRST_PORT, _PORTS = 1024, 60000
_CHECK_EVERY = 64


class Shared:
    """Numbers in memory that the processes share; each has one writer at a time."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = (ctypes.c_uint64 * (_PACKETS + SENDERS)).from_buffer(self._memory)

    @property
    def started(self) -> int:
        """The newest state whose change has begun."""
        return int(self._numbers[_STARTED])

    @property
    def done(self) -> int:
        """The newest state that is in force for certain."""
        return int(self._numbers[_DONE])

    @property
    def writes(self) -> int:
        """Entries that were written or deleted."""
        return int(self._numbers[_WRITES])

    @property
    def packets(self) -> int:
        return sum(self._numbers[_PACKETS:])

    @property
    def stopped(self) -> bool:
        return bool(self._numbers[_STOP])

    def begin(self, number: int) -> None:
        self._numbers[_STARTED] = number

    def end(self, number: int, writes: int = 0) -> None:
        self._numbers[_DONE] = number
        self._numbers[_WRITES] += writes

    def count(self, sender: int, packets: int) -> None:
        self._numbers[_PACKETS + sender] = packets

    def stop(self) -> None:
        self._numbers[_STOP] = 1


@dataclass(slots=True)
class Sent:
    """What one sender saw. `during`: packets that were sent while a change was made. `wrong`: sentences."""

    packets: int = 0
    during: int = 0
    dropped: int = 0
    wrong: int = 0
    examples: tuple[str, ...] = ()


def _not_atomic(entry: Entry, since: int) -> object:
    """An entry that is in force when it is written, not when the change is."""
    return VERSIONS[entry.table].of(entry.now, entry.was, 0)


MUTANTS: Mapping[str, Callable[[Entry, int], object]] = {"not-atomic": _not_atomic}


def agent(world: World, tables: Mapping[str, BpfTable], shared: Shared, mutant: str) -> str:
    """Make one change after the other until `stopped`. Returns "" or what is wrong with the maps at the start: exactly
    one of the states `done`..`started` must be in force, wherever the last agent was killed."""
    if mutant:
        Entry.record = MUTANTS[mutant]  # type: ignore[method-assign,assignment]
    grace = ProgramsGrace()
    maps = Maps(tables, grace)
    maps.read(Outcome(0))
    held = _meaning(maps.held)
    found = [number for number in range(shared.done, shared.started + 1) if held == _meaning(world.tables(number))]
    if not found:
        return f"after a kill between {shared.done} and {shared.started}: a mixture is in force"
    number = found[-1]
    shared.end(number)
    services = {name: maps.held[name] for name in SERVICE_TABLES}
    while not shared.stopped:
        number += 1
        shared.begin(number)
        outcome = Outcome(0)
        maps.write({**services, **world.tables(number)}, outcome)
        if outcome.errors:
            return f"state {number}: {outcome.errors[0]}"
        shared.end(number, outcome.writes.total() - outcome.writes["nn_state"])
    grace.close()
    return ""


def _meaning(tables: Tables) -> dict[str, dict[Any, Any]]:
    """The tables without entries that change nothing: an entry that goes has the value of the prefix that covers it,
    until it is deleted."""
    found = {name: dict(tables[name]) for name in SWITCHED}
    for name in TRIES:
        lengths = prefix_lengths(tables[name])
        found[name] = {k: v for k, v in tables[name].items() if covering(k, tables[name], lengths) != v}
    return found


def send(world: World, program: int, shared: Shared, number: int) -> Sent:
    """Send datagrams until `stopped`, each of another flow, and every fourth of a known flow. The answer to each must
    be that of a state that was in force at some time while it was sent."""
    choice = random.Random(number)
    frames = [probe.frame() for probe in PROBES]
    runs = [_options(frame) for frame in frames]
    run = libbpf.lib().bpf_prog_test_run_opts
    sent, port = Sent(), choice.randrange(_PORTS)
    while True:
        if sent.packets % _CHECK_EVERY == 0:
            shared.count(number, sent.packets)
            if shared.stopped:
                return sent
        place = choice.randrange(len(PROBES))
        port = (port + 1) % _PORTS
        set_port(frames[place], _FIXED_PORT + number if port % 4 == 0 else _FIRST_PORT + port)
        options = runs[place]
        first = shared.done
        libbpf.check(run(program, ctypes.byref(options)), "BPF_PROG_TEST_RUN")
        last = shared.started
        passed = options.retval != TC_ACT_SHOT
        sent.packets += 1
        sent.during += first < last
        sent.dropped += not passed
        states = range(first, last + 1)
        if all(_answers(world, state)[place] is not passed for state in states):
            sent.wrong += 1
            probe = PROBES[place]
            text = f"{probe.source} -> {probe.target}: {'passed' if passed else 'dropped'} in {first}..{last}"
            sent.examples = (*sent.examples, text)[:10]


@lru_cache(maxsize=64)
def _answers(world: World, state: int) -> tuple[bool, ...]:
    return world.answers(state)


def _options(frame: bytearray) -> RunOptions:
    data = (ctypes.c_char * len(frame)).from_buffer(frame)
    return RunOptions(sz=ctypes.sizeof(RunOptions), data_in=ctypes.addressof(data), data_size_in=len(frame), repeat=1)
