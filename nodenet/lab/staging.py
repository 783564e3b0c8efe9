"""Stage trouble in a running lab: what `nodenet lab trouble`, the soak and the tests call. Synchronous.

stage = Staging(LabClient("lab"))
with stage.api(Mode.BLACKHOLE, nodes=["node1"]):
    ...                                     # node1 has no API
stage.api_event(Event.CUT_WATCHES)          # all is well again before this line
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nodenet.lab.api_trouble import ApiTrouble, Event, Mode, to_json
from nodenet.lab.client import LabClient


class Staging:
    """Every call raises RequestError (exit code 2) for what cannot be staged."""

    def __init__(self, client: LabClient) -> None:
        self._client = client

    def list(self) -> list[dict[str, Any]]:
        """What is staged now: node, kind, what, secondsLeft (None: until it is ended)."""
        found: list[dict[str, Any]] = self._client.control("GET", "/status")["troubles"]
        return found

    def set_api(self, trouble: ApiTrouble, nodes: Sequence[str] = (), seconds: float | None = None) -> None:
        """For these nodes, all of them when none is named; for `seconds` or until it is ended."""
        self._act("api", nodes=list(nodes), **to_json(trouble), **{"for": seconds})

    def api_back(self, nodes: Sequence[str] = ()) -> None:
        """Nodes reach the API again. No error where they did."""
        self._act("api", nodes=list(nodes), mode="back")

    @contextmanager
    def api(self, trouble: Mode | ApiTrouble, nodes: Sequence[str] = ()) -> Iterator[None]:
        """As long as the block runs."""
        self.set_api(ApiTrouble(trouble) if isinstance(trouble, Mode) else trouble, nodes)
        with _ending(self.api_back, nodes):
            yield

    def api_event(self, event: Event, nodes: Sequence[str] = ()) -> int:
        """How many connections or watches it ended."""
        ended: int = self._act("api-event", nodes=list(nodes), event=event)
        return ended

    def agent(self, verb: str, nodes: Sequence[str], seconds: float | None = None) -> None:
        """One of agents.VERBS. `seconds`: how long a pause lasts."""
        self._act("agent", nodes=list(nodes), verb=verb, **{"for": seconds})

    @contextmanager
    def paused(self, *nodes: str) -> Iterator[None]:
        """The agents of these nodes are stopped as long as the block runs."""
        self.agent("pause", nodes)
        with _ending(self._resume, nodes):
            yield

    def _resume(self, nodes: Sequence[str]) -> None:
        self.agent("resume", nodes)

    def reboot(self, *nodes: str, forget: bool = False) -> dict[str, str]:
        """The nodes lose their power and start again; their new boot ids. Returns before the agents are ready.

        `forget`: the runtime loses its memory of sandboxes as well, so the CNI plugin gets no DEL for them.
        """
        found: dict[str, str] = self._act("reboot", nodes=list(nodes), forget=forget)
        return found

    def clock(self, seconds: float, nodes: Sequence[str] = ()) -> None:
        """Set the wall clock of these nodes' agents forward, or back. The lab needs --settable-clock."""
        self._act("clock", nodes=list(nodes), seconds=seconds)

    def clear(self) -> None:
        """Everything that is staged ends."""
        self._act("clear")

    def _act(self, name: str, **request: Any) -> Any:
        return self._client.control("POST", f"/act/{name}", request)["result"]


@contextmanager
def _ending(end: Callable[[Sequence[str]], None], nodes: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        end(nodes)
