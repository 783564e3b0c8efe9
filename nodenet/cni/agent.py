"""The hooks of an agent in the verbs that its server runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nodenet.cni.hooks import Wired, nothing
from nodenet.cni.podcidrs import Networks
from nodenet.cni.request import Request
from nodenet.endpoint import Endpoint


def _no_count(verb: str, seconds: float, failed: bool) -> None:
    """The default of `done`: count nothing."""


@dataclass(frozen=True, slots=True)
class AgentHooks:
    """The agent's part of the verbs, for its server (server.py).

    `expected(request)` is called before an ADD creates anything; if it raises CniError, that is the reply.

    `admit(wired)` is called when everything is wired and recorded. Then `on_add(endpoint)` is awaited, and then ADD
    replies: together they put the endpoint's policy in force. If either raises, the ADD is undone: a CniError keeps its
    code, a timeout is code 11, any other exception is code 105. Then `on_del` is awaited for the same endpoint.

    `on_del(endpoint)` is awaited after the veth is removed and before the addresses are released. It must accept an
    unknown endpoint. If it raises, the DEL fails with code 11 or 105, and the runtime retries it.

    `healthy()` returns a sentence about a problem of the agent, or "", for STATUS. `networks()` returns the node's pod
    networks, for configurations without ranges; `mtu()` is that of new pods, for configurations without one.
    `done(verb, seconds, failed)` is called after each verb.

    Awaited hooks run on the event loop and have `seconds`; the others run in the thread of the call.
    """

    on_add: Callable[[Endpoint], Awaitable[None]]
    on_del: Callable[[Endpoint], Awaitable[None]]
    expected: Callable[[Request], None] = nothing
    admit: Callable[[Wired], None] = nothing
    healthy: Callable[[], Awaitable[str]] | None = None
    networks: Networks | None = None
    mtu: Callable[[], int] | None = None
    done: Callable[[str, float, bool], None] = _no_count
    seconds: float = 30.0
