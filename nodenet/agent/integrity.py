"""Regularly checks the kernel objects on which enforcement depends, restores missing ones, and reports that.

These are the programs on pods' interfaces, the bridges of these interfaces, the socket programs on the node's cgroup,
and the pins. Every privileged process may remove them (`tc qdisc del`, `bpftool net detach`, `rm`), and other tools do
so by mistake. The reconcile loop compares the content of the maps. The kernel sends no notification about tcx programs
and links, so this polls about once a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from nodenet.agent.attachment import Inspection
from nodenet.agent.ports import Synced
from nodenet.bpf.loader import PinCheck
from nodenet.errors import NodenetError
from nodenet.model import Endpoint

log = logging.getLogger(__name__)

# The shortest pause between two checks, in seconds.
PAUSE_SECONDS = 1.0
# The pause is also at least this many times as long as the check, so that checks take at most 2 % of one CPU.
_PAUSE = 50
# How long `status` shows a repair, and how many it shows.
SHOWN_SECONDS = 3600.0
_MOST_SHOWN = 20
# How many endpoints are checked in one job of the worker thread for links, so that other jobs need not wait long.
_CHUNK = 64
_DONE = "put back; who changed it is not known"


class Veths(Protocol):
    """The method of agent.host.Host that is used here."""

    async def inspect(
        self, endpoints: Sequence[Endpoint], programs: Mapping[str, int]
    ) -> dict[Endpoint, Inspection | None]: ...

    async def sync_ports(self, endpoints: Sequence[Endpoint]) -> Synced: ...


class Kernel(Protocol):
    """The methods of agent.datapath.Datapath that are used here. Both block."""

    def attach_sockets(self) -> list[str]: ...

    def check_pins(self) -> PinCheck: ...


class Endpoints(Protocol):
    """The methods of agent.endpoints.Endpoints that are used here. `repair` attaches the missing programs of one
    endpoint and returns how many."""

    def known(self) -> Sequence[Endpoint]: ...

    async def repair(self, endpoint: Endpoint) -> int: ...


class Integrity:
    """`drift` returns how many map entries the reconcile loop has repaired so far. All methods run in the event loop;
    only the checks of the kernel run in threads."""

    def __init__(
        self,
        host: Veths,
        kernel: Kernel,
        programs: Mapping[str, int],
        endpoints: Endpoints,
        drift: Callable[[], int],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # Number of repairs so far, by "program", "bridge port", "socket program", "pin", "map entry".
        self.repairs: Counter[str] = Counter()
        # A sentence for each current problem that the agent cannot or must not repair.
        self.problems: tuple[str, ...] = ()
        self._host = host
        self._kernel = kernel
        self._programs = programs
        self._endpoints = endpoints
        self._drift = drift
        self._monotonic = monotonic
        self._recent: deque[tuple[float, str]] = deque(maxlen=_MOST_SHOWN)
        # Endpoints whose interface did not exist at the last check.
        self._gone: frozenset[Endpoint] = frozenset()

    def recent(self) -> list[str]:
        """A sentence for each repair of the last hour, oldest first."""
        since = self._monotonic() - SHOWN_SECONDS
        return [sentence for when, sentence in self._recent if when >= since]

    async def keep(self, ready: asyncio.Event) -> None:
        """Check regularly, until cancelled. Starts when `ready` is set: all programs have been attached once."""
        await ready.wait()
        while True:
            started = self._monotonic()
            try:
                await self.check()
            except (NodenetError, OSError) as error:
                log.warning("attached programs could not be checked: %s", error)
                self._report([f"attached programs could not be checked: {error}"])
            await asyncio.sleep(max(PAUSE_SECONDS, _PAUSE * (self._monotonic() - started)))

    async def check(self) -> None:
        """Check everything once. If the socket programs cannot be attached, the other checks still run."""
        problems = [*await self._check_endpoints(), *await self._check_ports(), *await self._check_kernel()]
        if changed := self._drift() - self.repairs["map entry"]:
            self._note("map entry", changed, f"{changed} entries of maps were not as the agent left them")
        self._report(problems)

    async def _check_endpoints(self) -> list[str]:
        found: dict[Endpoint, Inspection | None] = {}
        for chunk in _chunks(list(self._endpoints.known())):
            found |= await self._host.inspect(chunk, self._programs)
        problems = []
        for endpoint, seen in found.items():
            if seen is None:
                # Report it only from the second check on: at the first, a DEL may be under way.
                if endpoint in self._gone:
                    problems.append(f"endpoint of {endpoint.pod}: its interface {endpoint.host_ifname} is gone")
                continue
            if seen.missing and (count := await self._endpoints.repair(endpoint)):
                names = " and ".join(seen.missing)
                self._note(
                    "program", count, f"the interface of {endpoint.pod} ({endpoint.host_ifname}) had lost {names}"
                )
            problems += _foreign(endpoint, seen)
        self._gone = frozenset(endpoint for endpoint, seen in found.items() if seen is None)
        return problems

    async def _check_ports(self) -> list[str]:
        found = await self._host.sync_ports(self._endpoints.known())
        for endpoint, wrong in found.restored.items():
            self._note("bridge port", 1, f"endpoint of {endpoint.pod}: {wrong}")
        return list(found.problems)

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
    """A sentence for each foreign program that runs before ours. The agent does not remove it, because its owner would
    attach it again and the two tools would fight."""
    for name, numbers in seen.before.items():
        which = ", ".join(map(str, numbers))
        yield (
            f"endpoint of {endpoint.pod}: another program (bpftool prog show id {which}) runs before {name} on "
            f"{endpoint.host_ifname}: what it passes on or redirects is not policed"
        )


def _chunks(endpoints: Sequence[Endpoint]) -> Iterator[Sequence[Endpoint]]:
    for start in range(0, len(endpoints), _CHUNK):
        yield endpoints[start : start + _CHUNK]
