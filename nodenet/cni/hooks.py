"""Where an agent takes part in the verbs; a node without one has `ALONE`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from nodenet.cni.podcidrs import Networks
from nodenet.endpoint import Endpoint, IPAddress
from nodenet.link.handle import Link


@dataclass(frozen=True, slots=True)
class Wired:
    """An attachment that is wired and recorded, as ADD hands it to the agent: with the rtnetlink sockets of the node
    and of the pod, and the addresses that the node is sure to have since."""

    endpoint: Endpoint
    node: Link
    pod: Link
    gateways: frozenset[IPAddress]


def nothing(what: object) -> None:
    """The hook of a node without an agent."""


def _wanted() -> None:
    """A process of its own ends with its caller's patience."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an agent adds. `healthy` says in a sentence what is wrong, or ""; `networks` are the node's pod networks.

    An ADD is wired inside `turn`; what it waits for (the agent, another IPAM plugin, duplicate detection) is outside.
    `wanted` raises CniError when an ADD is of no use any more: its caller or its pod is gone. It is called while the
    attachment is held and before anything is made, so that no ADD comes after the DEL of a runtime that gave it up.
    """

    forget: Callable[[Endpoint], None] = nothing
    healthy: Callable[[], str] = str
    networks: Networks | None = None
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    wanted: Callable[[], None] = _wanted


ALONE = Hooks()
