"""The daemon's side of injected faults: which faults each node has, and when they end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from nodenet.errors import BadInputError
from nodenet.lab import api_trouble
from nodenet.lab.api_trouble import ApiTrouble, Event
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.control import Act
from nodenet.lab.gate import Gate
from nodenet.lab.virtual_node import VirtualNode

log = logging.getLogger(__name__)

Request = Mapping[str, Any]
_MOST_SECONDS = 86400.0


class Endings:
    """Timers that end faults, by (node, kind). A new timer replaces an earlier one of the same key."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], tuple[float, asyncio.Task[None]]] = {}

    def set(self, key: tuple[str, str], seconds: float | None, undo: Callable[[], Awaitable[None]]) -> None:
        """Call `undo` after `seconds`. None only removes an earlier timer."""
        self.cancel(key)
        if seconds is not None:
            task = asyncio.create_task(self._later(key, seconds, undo), name=f"end of {' '.join(key)}")
            self._tasks[key] = (time.monotonic() + seconds, task)

    def cancel(self, key: tuple[str, str]) -> None:
        _, task = self._tasks.pop(key, (0.0, None))
        if task is not None:
            task.cancel()

    def left(self, key: tuple[str, str]) -> float | None:
        """Seconds until the fault ends, or None if it has no time limit."""
        found = self._tasks.get(key)
        return max(round(found[0] - time.monotonic(), 1), 0.0) if found else None

    async def _later(self, key: tuple[str, str], seconds: float, undo: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(seconds)
        # `undo` cancels the registered timer. Remove this task first, so that it does not cancel itself.
        self._tasks.pop(key, None)
        log.info("%s: ends after %g s", " ".join(key), seconds)
        await undo()


class Troubles:
    """Handles all requests for faults from the control socket. Raises BadInputError for invalid requests."""

    def __init__(self, api: ApiServer, gate: Gate, nodes: Mapping[str, VirtualNode]) -> None:
        self._api = api
        self._gate = gate
        self._nodes = nodes
        self._staged: dict[str, ApiTrouble] = {}
        self._endings = Endings()

    def acts(self) -> dict[str, Act]:
        """The handlers by name, for the control socket."""
        return {
            "api": self.api,
            "api-event": self.api_event,
            "agent": self.agent,
            "reboot": self.reboot,
            "clock": self.clock,
            "clear": self.clear,
        }

    def describe(self) -> list[dict[str, Any]]:
        """The current faults, one row for each node and kind."""
        found = [
            {"node": node, "kind": "api", "what": str(trouble), "secondsLeft": self._endings.left((node, "api"))}
            for node, trouble in sorted(self._staged.items())
        ]
        found += [
            {"node": node, "kind": "agent", "what": "paused", "secondsLeft": self._endings.left((node, "agent"))}
            for node, each in self._nodes.items()
            if each.agent.paused
        ]
        found += [
            {"node": node, "kind": "clock", "what": f"{offset:+.9g} s", "secondsLeft": None}
            for node, each in self._nodes.items()
            if (offset := each.agent.clock.offset())
        ]
        return found

    async def api(self, request: Request) -> None:
        """Takes {"nodes", "mode", "latency", "rate", "code", "for"}. Mode "back" ends the fault."""
        nodes = self._named(request)
        if request.get("mode") == "back":
            await self._api_back(nodes)
            return
        trouble, seconds = api_trouble.from_json(request), seconds_of(request)
        await self._gate.stage(nodes, trouble)
        for node in nodes:
            self._staged[node] = trouble
            self._endings.set((node, "api"), seconds, partial(self._api_back, [node]))
        log.info("API of %s: %s", ", ".join(nodes), trouble)

    async def _api_back(self, nodes: Collection[str]) -> None:
        for node in nodes:
            self._endings.cancel((node, "api"))
            self._staged.pop(node, None)
        await self._gate.stage(nodes, None)

    async def api_event(self, request: Request) -> int:
        """Takes {"nodes", "event"}. Returns how many connections or watches it ended."""
        nodes = self._named(request)
        try:
            event = Event(request.get("event", ""))
        except ValueError as error:
            raise BadInputError(f"event: expected one of {', '.join(Event)}, got {request.get('event')!r}") from error
        if event is Event.RESET:
            return self._gate.reset(nodes)
        if event is Event.EXPIRE:
            self._api.compact()
        return self._api.watches.cut(lambda host: self._gate.node_of(host) in nodes, expired=event is Event.EXPIRE)

    async def agent(self, request: Request) -> None:
        """Takes {"nodes", "verb", "for"}; the verb is one of agents.VERBS. Only a pause can have a time limit."""
        verb, seconds = str(request.get("verb", "")), seconds_of(request)
        if seconds is not None and verb != "pause":
            raise BadInputError("for: only a pause can have a time limit")
        for node in self._named(request):
            agent = self._nodes[node].agent
            await agent.act(verb)
            if verb == "pause":
                self._endings.set((node, "agent"), seconds, partial(agent.act, "resume"))
            elif not agent.paused:
                self._endings.cancel((node, "agent"))

    async def reboot(self, request: Request) -> dict[str, str]:
        """Takes {"nodes", "forget"} with at least one node. Returns the new boot ids."""
        if not request.get("nodes"):
            raise BadInputError("nodes: expected the nodes to reboot")
        forget = bool(request.get("forget"))
        return {node: await self._nodes[node].reboot(forget=forget) for node in self._named(request)}

    async def clock(self, request: Request) -> dict[str, float]:
        """Takes {"nodes", "seconds"}: moves the clocks forward, or back if negative. Returns by how many seconds each
        clock is then ahead of the machine's."""
        seconds = request.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise BadInputError(f"seconds: expected a number, got {seconds!r}")
        clocks = {node: self._nodes[node].agent.clock for node in self._named(request)}
        for clock in clocks.values():
            clock.step(seconds)
        return {node: clock.offset() for node, clock in clocks.items()}

    async def clear(self, _request: Request) -> None:
        """End all faults."""
        await self._api_back(list(self._nodes))
        for node, each in self._nodes.items():
            self._endings.cancel((node, "agent"))
            await each.agent.act("resume")
            if offset := each.agent.clock.offset():
                each.agent.clock.step(-offset)

    def _named(self, request: Request) -> Sequence[str]:
        """The nodes that the request names, or all if it names none."""
        known, wanted = list(self._nodes), request.get("nodes") or []
        if not isinstance(wanted, list) or any(node not in known for node in wanted):
            raise BadInputError(f"nodes: expected some of {', '.join(known)}, got {wanted!r}")
        return wanted or known


def seconds_of(request: Request) -> float | None:
    """The request's "for": seconds, or None. Raises BadInputError."""
    value = request.get("for")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_SECONDS:
        raise BadInputError(f"for: expected seconds, more than 0 and at most {_MOST_SECONDS:g}, got {value!r}")
    return float(value)
