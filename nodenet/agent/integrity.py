"""Looks again and again at what enforcement rests on in the kernel, puts back what is missing, and reports it.

Programs on pods' interfaces, socket programs on the node's cgroup, pins. Anyone with the right to may take them away
(`tc qdisc del`, `bpftool net detach`, `rm`), and other tools do so by mistake. What the maps hold is compared by the
reconcile loop. The kernel sends no notification about tcx programs and links, so this looks about once a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Protocol

from nodenet.agent.attachment import Inspection
from nodenet.bpf.loader import PinCheck
from nodenet.errors import NodenetError
from nodenet.model import Endpoint

log = logging.getLogger(__name__)

# Seconds between two looks, at least, and how many times longer than a look the pause after it is: looking takes 2 % of
# one CPU at most.
PAUSE_SECONDS = 1.0
_PAUSE = 50
# For so long `status` shows a repair, and so many of them.
SHOWN_SECONDS = 3600.0
_MOST_SHOWN = 20
# Endpoints that are looked at in one turn of the thread that does all of the node's links.
_CHUNK = 64
_DONE = "put back; who changed it is not known"


class Veths(Protocol):
    """What is asked of agent.host.Host."""

    async def inspect(
        self, endpoints: Sequence[Endpoint], programs: Mapping[str, int]
    ) -> dict[Endpoint, Inspection | None]: ...


class Kernel(Protocol):
    """What is asked of agent.datapath.Datapath. Both block."""

    def attach_sockets(self) -> list[str]: ...

    def check_pins(self) -> PinCheck: ...


class Integrity:
    """`endpoints` gives those to look at; `repair` puts both programs on one and says how many were put back; `drift`
    is how many entries of maps were put right so far. Everything but the looks themselves runs in the event loop."""

    def __init__(
        self,
        host: Veths,
        kernel: Kernel,
        programs: Mapping[str, int],
        endpoints: Callable[[], Sequence[Endpoint]],
        repair: Callable[[Endpoint], Awaitable[int]],
        drift: Callable[[], int],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # What was put back so far: "program", "socket program", "pin", "map entry".
        self.repairs: Counter[str] = Counter()
        # Sentences about what is wrong now and not for the agent to change.
        self.problems: tuple[str, ...] = ()
        self._host = host
        self._kernel = kernel
        self._programs = programs
        self._endpoints = endpoints
        self._repair = repair
        self._drift = drift
        self._monotonic = monotonic
        self._recent: deque[tuple[float, str]] = deque(maxlen=_MOST_SHOWN)
        # Endpoints whose interface was not there at the last look.
        self._gone: frozenset[Endpoint] = frozenset()

    def recent(self) -> list[str]:
        """A sentence for each repair of the last hour, the oldest first."""
        since = self._monotonic() - SHOWN_SECONDS
        return [sentence for when, sentence in self._recent if when >= since]

    async def keep(self, ready: asyncio.Event) -> None:
        """For ever, once everything is attached for the first time."""
        await ready.wait()
        while True:
            started = self._monotonic()
            try:
                await self.check()
            except (NodenetError, OSError) as error:
                log.warning("what is attached could not be looked at: %s", error)
                self._report([f"what is attached could not be looked at: {error}"])
            await asyncio.sleep(max(PAUSE_SECONDS, _PAUSE * (self._monotonic() - started)))

    async def check(self) -> None:
        """One look at everything. A part that fails does not keep the others from being looked at."""
        problems = [*await self._check_endpoints(), *await self._check_kernel()]
        if changed := self._drift() - self.repairs["map entry"]:
            self._note("map entry", changed, f"{changed} entries of maps were not as the agent left them")
        self._report(problems)

    async def _check_endpoints(self) -> list[str]:
        found: dict[Endpoint, Inspection | None] = {}
        for chunk in _chunks(list(self._endpoints())):
            found |= await self._host.inspect(chunk, self._programs)
        problems = []
        for endpoint, seen in found.items():
            if seen is None:
                # At the first look its DEL may be on the way.
                if endpoint in self._gone:
                    problems.append(f"endpoint of {endpoint.pod}: its interface {endpoint.host_ifname} is gone")
                continue
            if seen.missing and (count := await self._repair(endpoint)):
                names = " and ".join(seen.missing)
                self._note(
                    "program", count, f"the interface of {endpoint.pod} ({endpoint.host_ifname}) had lost {names}"
                )
            problems += _foreign(endpoint, seen)
        self._gone = frozenset(endpoint for endpoint, seen in found.items() if seen is None)
        return problems

    async def _check_kernel(self) -> list[str]:
        pins = await asyncio.to_thread(self._kernel.check_pins)
        if pins.repinned:
            self._note("pin", len(pins.repinned), f"pins of {', '.join(pins.repinned)} were gone")
        try:
            sockets = await asyncio.to_thread(self._kernel.attach_sockets)
        except OSError as error:
            return [*pins.problems, f"socket programs are not attached: {error}"]
        if sockets:
            self._note("socket program", len(sockets), f"the node's cgroup had lost {', '.join(sockets)}")
        return list(pins.problems)

    def _note(self, what: str, count: int, sentence: str) -> None:
        self.repairs[what] += count
        self._recent.append((self._monotonic(), f"{time.strftime('%H:%M:%S')}: {sentence}: {_DONE}"))
        log.warning("%s: %s", sentence, _DONE)

    def _report(self, problems: Sequence[str]) -> None:
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = tuple(problems)


def _foreign(endpoint: Endpoint, seen: Inspection) -> Iterator[str]:
    """Others' programs in front of ours. They are left alone: two tools that remove each other's work help no pod."""
    for name, numbers in seen.before.items():
        which = ", ".join(map(str, numbers))
        yield (
            f"endpoint of {endpoint.pod}: another program (bpftool prog show id {which}) runs before {name} on "
            f"{endpoint.host_ifname}: what it passes on or redirects is not policed"
        )


def _chunks(endpoints: Sequence[Endpoint]) -> Iterator[Sequence[Endpoint]]:
    for start in range(0, len(endpoints), _CHUNK):
        yield endpoints[start : start + _CHUNK]
