"""Fixtures of the lab's API endpoint and controllers."""

from __future__ import annotations

import pytest

from nodenet.lab.apiserver.server import ApiServer


class Clock:
    """UNIX seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(clock: Clock) -> ApiServer:
    return ApiServer(clock=clock)
