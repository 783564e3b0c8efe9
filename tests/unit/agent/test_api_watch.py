"""What is said while the API server is not reached."""

from __future__ import annotations

from typing import Any

from nodenet import kinds
from nodenet.agent.watch import ApiWatch
from nodenet.kube.health import KindStats


class Client:
    def __init__(self, error: str) -> None:
        self.stats = {kinds.POD: KindStats(error=error)}


class Engine:
    def __init__(self, *missing: Any) -> None:
        self.missing = missing


def problems(error: str, *missing: Any) -> list[str]:
    return ApiWatch(Client(error), Engine(*missing), "the reason").problems()  # type: ignore[arg-type]


def test_the_reason_is_given_only_if_the_server_was_never_reached() -> None:
    waiting = "waiting for the first list of: Pod"
    assert problems("refused", kinds.POD) == [waiting, "the reason", "watch of Pod: refused"]
    assert problems("", kinds.POD) == [waiting]
    assert problems("refused") == ["watch of Pod: refused"]
