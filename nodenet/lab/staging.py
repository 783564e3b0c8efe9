"""Injects faults into a running lab, for `nodenet lab trouble`, the soak and tests. Synchronous.

stage = Staging(LabClient("lab"))
with stage.api(Mode.BLACKHOLE, nodes=["node1"]):
    ...                                     # node1 cannot reach the API
stage.api_event(Event.CUT_WATCHES)          # the blackhole has ended before this line
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nodenet.lab.api_trouble import ApiTrouble, Event, Mode, to_json
from nodenet.lab.client import LabClient


class Staging:
    """Every call raises RequestError (exit code 2) if the lab refuses it. If no nodes are named, it affects all nodes;
    only `reboot` refuses that."""

    def __init__(self, client: LabClient) -> None:
        self._client = client

    def list(self) -> list[dict[str, Any]]:
        """The current faults: node, kind, what, secondsLeft (None: no time limit)."""
        found: list[dict[str, Any]] = self._client.control("GET", "/status")["troubles"]
        return found

    def set_api(self, trouble: ApiTrouble, nodes: Sequence[str] = (), seconds: float | None = None) -> None:
        """Set the API fault of these nodes, for `seconds` (None: without a time limit). It replaces an earlier one."""
        self._act("api", nodes=list(nodes), **to_json(trouble), **{"for": seconds})

    def api_back(self, nodes: Sequence[str] = ()) -> None:
        """End the API faults of these nodes. Not an error if there are none."""
        self._act("api", nodes=list(nodes), mode="back")

    @contextmanager
    def api(self, trouble: Mode | ApiTrouble, nodes: Sequence[str] = ()) -> Iterator[None]:
        """Set the API fault of these nodes for the duration of the block. An earlier fault of them does not return."""
        self.set_api(ApiTrouble(trouble) if isinstance(trouble, Mode) else trouble, nodes)
        with _ending(self.api_back, nodes):
            yield

    def api_event(self, event: Event, nodes: Sequence[str] = ()) -> int:
        """Cause one event. Returns how many connections or watches it ended."""
        ended: int = self._act("api-event", nodes=list(nodes), event=event)
        return ended

    def agent(self, verb: str, nodes: Sequence[str], seconds: float | None = None) -> None:
        """Do one of agents.VERBS. `seconds`: how long a pause lasts."""
        self._act("agent", nodes=list(nodes), verb=verb, **{"for": seconds})

    @contextmanager
    def paused(self, *nodes: str) -> Iterator[None]:
        """Pause the agents of these nodes (SIGSTOP) for the duration of the block."""
        self.agent("pause", nodes)
        with _ending(self._resume, nodes):
            yield

    def _resume(self, nodes: Sequence[str]) -> None:
        self.agent("resume", nodes)

    def reboot(self, *nodes: str, forget: bool = False) -> dict[str, str]:
        """Reboot nodes as after a power failure. Returns their new boot ids, before the agents are ready.

        `forget`: the runtime loses its records of sandboxes too, so it sends no CNI DEL for them.
        """
        found: dict[str, str] = self._act("reboot", nodes=list(nodes), forget=forget)
        return found

    def clock(self, seconds: float, nodes: Sequence[str] = ()) -> None:
        """Move the wall clock of these nodes' agents forward, or back if negative. Needs --settable-clock."""
        self._act("clock", nodes=list(nodes), seconds=seconds)

    def clear(self) -> None:
        """End all faults."""
        self._act("clear")

    def _act(self, name: str, **request: Any) -> Any:
        return self._client.control("POST", f"/act/{name}", request)["result"]


@contextmanager
def _ending(end: Callable[[Sequence[str]], None], nodes: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        end(nodes)
