"""One call from the CNI executable to the agent's server, and the pool of plugins that run the calls."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nodenet.cni.conf import failure
from nodenet.cni.errors import CniError, Code
from nodenet.cni.owner import Owner
from nodenet.cni.plugin import Plugin
from nodenet.cni.protocol import Reply
from nodenet.cni.request import Request
from nodenet.endpoint import Endpoint

log = logging.getLogger("nodenet.cni")


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A request and the connection for its reply. `began` is a time of the monotonic clock, in seconds."""

    connection: socket.socket
    request: Request
    began: float = field(default_factory=time.monotonic)

    @property
    def owner(self) -> Owner:
        return Owner(self.request.container_id, self.request.ifname)

    def failed(self, error: Exception) -> Reply:
        """The error reply for an exception of a verb. Anything but a CniError is a bug of ours and is logged."""
        request = self.request
        if not isinstance(error, CniError):
            log.error("%s %s %s failed", request.verb, request.container_id, request.ifname, exc_info=error)
            error = CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
        return failure(request.stdin, error)


class Plugins:
    """A pool of plugins with their rtnetlink sockets. One call uses a plugin at a time. Thread-safe."""

    def __init__(self, make: Callable[[], Plugin]) -> None:
        self._make = make
        self._idle: deque[Plugin] = deque()

    def acquire(self) -> Plugin:
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()

    def release(self, plugin: Plugin) -> None:
        self._idle.append(plugin)

    def close(self) -> None:
        """Close the idle plugins; no plugin may be in use."""
        while self._idle:
            self._idle.pop().close()


def describe(endpoint: Endpoint) -> str:
    """Describes an endpoint in messages."""
    return f"endpoint {endpoint.endpoint_id} of {endpoint.pod if endpoint.pod.name else endpoint.container_id}"
