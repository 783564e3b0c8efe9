"""The hooks by which an agent takes part in the verbs. A node without an agent uses `NO_AGENT`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from nodenet.cni.podcidrs import Networks
from nodenet.endpoint import Endpoint, IPAddress
from nodenet.link.handle import Link


@dataclass(frozen=True, slots=True)
class Wired:
    """A wired and recorded attachment, as ADD passes it to the agent: with the rtnetlink sockets of the node and of
    the pod. `gateways` are addresses that the node certainly has now."""

    endpoint: Endpoint
    node: Link
    pod: Link
    gateways: frozenset[IPAddress]


def nothing(what: object) -> None:
    """A hook that does nothing."""


def _no_check() -> None:
    """Without an agent no check is needed: the runtime kills the plugin process when it gives up."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of an agent. `healthy` returns a sentence about a problem, or "". `networks` are the node's pod
    networks; `mtu` is that of new pods, 0 if it is not known.

    An ADD is wired inside `turn`. It waits for the agent, another IPAM plugin and duplicate address detection outside
    of it. `require_wanted` raises CniError if the ADD is no longer useful: its caller or its pod is gone. It is called
    while the attachment is held and before anything is created, so that no ADD follows the DEL of a runtime that gave
    up.
    """

    forget: Callable[[Endpoint], None] = nothing
    healthy: Callable[[], str] = str
    networks: Networks | None = None
    mtu: Callable[[], int] | None = None
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    require_wanted: Callable[[], None] = _no_check


NO_AGENT = Hooks()
