"""Ends connected UDP sockets whose backend left their Service.

connect() is translated once, so such a socket stays with its backend for good: without an error where the backend does
not refuse, and a resolver or a statsd client never asks again. After SOCK_DESTROY its owner gets an error (recv:
ECONNABORTED, send: EDESTADDRREQ) and connects again. TCP is left alone: the peer or a timeout ends it.

Only a socket that was translated for this Service is ended: nn_sock_revnat has its cookie with this backend. One that
connected to the pod's own address has no entry there. Every sweep looks at all connected UDP sockets in the namespaces
of the node and of its endpoints, so it needs no memory of what left when, and a new agent finds what left before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nodenet.abi import AddressPort, SockRevnatKey
from nodenet.errors import NodenetError
from nodenet.evolved import Evolved
from nodenet.link.netlink import RefusedError
from nodenet.link.sockdiag import ESTABLISHED, SockDiag, Socket
from nodenet.model import Protocol as IPProtocol

log = logging.getLogger(__name__)

UDP = int(IPProtocol.UDP)
# A connect() that chose its backend just before the change becomes visible just after: look once more.
SECOND_LOOK_SECONDS = 1.0

# nn_member: MemberKey -> AddressPort
Members = Mapping[Any, Any]


class Revnat(Protocol):
    """nn_sock_revnat."""

    def get(self, key: SockRevnatKey) -> Any: ...


class Place(NamedTuple):
    """A namespace to look into: `path` None is the agent's own, where hostNetwork pods and the node's processes are."""

    owner: str
    path: str | None


class Ended(NamedTuple):
    """Whose sockets were ended, which Service they were connected to, and the backend that left it."""

    owner: str
    service_id: int
    backend: AddressPort


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep did. `failed`: what could not be looked at or ended, a sentence each."""

    ended: Counter[Ended] = field(default_factory=Counter)
    failed: tuple[str, ...] = ()


def sweep(places: Iterable[Place], members: Members, revnat: Revnat) -> Sweep:
    """End every stale socket. Blocks: for a worker thread. Never raises for one namespace."""
    current = {(key.service_id, backend) for key, backend in members.items()}
    ended: Counter[Ended] = Counter()
    failed: list[str] = []
    for place in places:
        try:
            with SockDiag(place.path) as diag:
                for found, service_id, backend in _stale(diag, current, revnat):
                    if diag.destroy(found):
                        ended[Ended(place.owner, service_id, backend)] += 1
        except FileNotFoundError:
            continue  # the pod ended meanwhile
        except (OSError, RefusedError, NodenetError) as error:
            failed.append(f"UDP sockets of {place.owner} could not be looked at: {error}")
    return Sweep(ended, tuple(failed))


def _stale(
    diag: SockDiag, current: Collection[tuple[int, AddressPort]], revnat: Revnat
) -> Iterator[tuple[Socket, int, AddressPort]]:
    for found in diag.sockets(UDP, ESTABLISHED):
        entry = revnat.get(SockRevnatKey(found.cookie, found.remote, found.remote_port, UDP))
        backend = AddressPort(found.remote, found.remote_port, UDP)
        if entry is not None and (entry.value, backend) not in current:
            yield found, entry.value, backend


def lost(before: Members | None, after: Members) -> bool:
    """Whether a member of a Service left it. None: not known, so yes."""
    if before is after:
        return False
    if before is None:
        return True
    known = after.changed_since(before) if isinstance(after, Evolved) else None
    keys = before if known is None else known
    return any(key in before and after.get(key) != before[key] for key in keys)


class SocketKeeper:
    """Sweeps when a member left, a second later once more, and as often as the maps are compared.

    `places` gives the namespaces of this moment. Everything but the sweep itself runs in the event loop.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[Place]],
        revnat: Revnat,
        name_of: Callable[[int], str],
        resync_seconds: float,
        available: bool = True,
    ) -> None:
        self.ended = 0
        # Sentences about namespaces that the last sweep could not look into.
        self.problems: list[str] = []
        self._places = places
        self._revnat = revnat
        self._name_of = name_of
        self._resync_seconds = resync_seconds
        self._available = available
        self._members: Members | None = None
        self._left = asyncio.Event()

    def members(self, members: Members) -> None:
        """nn_member as it is in the kernel now. Must not be changed afterwards."""
        if lost(self._members, members):
            self._left.set()
        self._members = members

    async def keep(self) -> None:
        """Until cancelled. Returns at once where the kernel cannot end sockets."""
        if not self._available:
            log.warning("connected UDP sockets stay with a backend that left: the kernel has no SOCK_DESTROY for UDP")
            return
        while True:
            try:
                async with asyncio.timeout(self._resync_seconds):
                    await self._left.wait()
            except TimeoutError:
                await self._sweep()
                continue
            self._left.clear()
            await self._sweep()
            await asyncio.sleep(SECOND_LOOK_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        members = self._members
        if members is None:
            return
        done = await asyncio.to_thread(sweep, list(self._places()), members, self._revnat)
        self.ended += done.ended.total()
        for (owner, service_id, backend), count in done.ended.items():
            log.info(
                "ended %d UDP sockets of %s: %s:%d is no longer a backend of %s",
                count,
                owner,
                backend.addr,
                backend.port,
                self._name_of(service_id),
            )
        for problem in done.failed:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = list(done.failed)
