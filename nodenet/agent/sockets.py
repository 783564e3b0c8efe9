"""Ends connected UDP sockets whose backend left their Service.

connect() translates the Service address once, so such a socket keeps its backend. If the backend sends no error, the
program does not notice: a resolver or a statsd client never connects again. After SOCK_DESTROY the program gets an
error (recv: ECONNABORTED, send: EDESTADDRREQ) and connects again. TCP sockets are not touched: the peer or a timeout
ends them.

Only a socket that was translated for this Service is ended: nn_sock_peer has this backend for it (a socket that was
opened by an earlier version: nn_sock_revnat). A socket that connected to the pod's own address has no entry. Each sweep
checks all connected UDP sockets in the namespaces of the node and of its endpoints. So it needs no record of earlier
changes, and a new agent also finds backends that left before its start.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nodenet.abi import AddressPort, SockQuestion, SockRevnatKey
from nodenet.bpf.packet_run import run_packet
from nodenet.errors import NodenetError
from nodenet.evolved import Evolved
from nodenet.link import netns
from nodenet.link.netlink import RefusedError
from nodenet.link.sockdiag import ESTABLISHED, SockDiag, Socket
from nodenet.model import Protocol as IPProtocol

log = logging.getLogger(__name__)

UDP = int(IPProtocol.UDP)
# Seconds until a second sweep. It finds sockets that chose their backend just before the change and became visible only
# after the first sweep.
SECOND_SWEEP_SECONDS = 1.0

# nn_member: MemberKey -> AddressPort
Members = Mapping[Any, Any]


class Revnat(Protocol):
    """nn_sock_revnat."""

    def get(self, key: SockRevnatKey) -> Any: ...


@dataclass(frozen=True, slots=True)
class Peers:
    """Which Service a socket called. `program`: the descriptor of sock_service."""

    program: int
    revnat: Revnat

    def service_of(self, found: Socket) -> int | None:
        """The number of the Service; None if the socket called none. Call it in the socket's namespace."""
        question = SockQuestion(found.local, found.remote, found.local_port, found.remote_port)
        number = self._ask(question, found.ifindex)
        if number:
            return number
        entry = self.revnat.get(SockRevnatKey(found.cookie, found.remote, found.remote_port, UDP))
        return None if entry is None else int(entry.value)

    def _ask(self, question: SockQuestion, ifindex: int) -> int:
        """A socket that is bound to a device is only found by a packet on it."""
        try:
            return run_packet(self.program, question.pack(), ifindex=ifindex).verdict & 0xFFFFFFFF
        except OSError as error:
            # The device is gone, and the socket with the index of nothing sends no packet any more.
            if ifindex and error.errno == errno.ENODEV:
                return 0
            raise


class Place(NamedTuple):
    """A namespace to sweep. `path` None: the agent's own, with hostNetwork pods and the node's processes."""

    owner: str
    path: str | None


class Ended(NamedTuple):
    """The owner of sockets that were ended, the Service to which they were connected, and the backend that left it."""

    owner: str
    service_id: int
    backend: AddressPort


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of one sweep. `failed`: a sentence for each namespace or socket for which it failed."""

    ended: Counter[Ended] = field(default_factory=Counter)
    failed: tuple[str, ...] = ()


def sweep(places: Iterable[Place], members: Members, peers: Peers) -> Sweep:
    """End all stale sockets. Blocks, so call it in a worker thread. An error in one namespace does not stop the
    others."""
    current = {(key.service_id, backend) for key, backend in members.items()}
    ended: Counter[Ended] = Counter()
    failed: list[str] = []
    for place in places:
        try:
            gone = netns.call(place.path, _end, current, peers) if place.path else _end(current, peers)
            for (service_id, backend), count in gone.items():
                ended[Ended(place.owner, service_id, backend)] += count
        except FileNotFoundError:
            continue  # the pod has ended in the meantime
        except (OSError, RefusedError, NodenetError) as error:
            failed.append(f"UDP sockets of {place.owner} could not be listed: {error}")
    return Sweep(ended, tuple(failed))


def _end(current: Collection[tuple[int, AddressPort]], peers: Peers) -> Counter[tuple[int, AddressPort]]:
    """End the stale sockets of this thread's namespace. Returns how many, by Service and backend."""
    ended: Counter[tuple[int, AddressPort]] = Counter()
    with SockDiag() as diag:
        for found, service_id, backend in _stale(diag, current, peers):
            if diag.destroy(found):
                ended[service_id, backend] += 1
    return ended


def _stale(
    diag: SockDiag, current: Collection[tuple[int, AddressPort]], peers: Peers
) -> Iterator[tuple[Socket, int, AddressPort]]:
    for found in diag.sockets(UDP, ESTABLISHED):
        service_id = peers.service_of(found)
        backend = AddressPort(found.remote, found.remote_port, UDP)
        if service_id is not None and (service_id, backend) not in current:
            yield found, service_id, backend


def lost(before: Members | None, after: Members) -> bool:
    """True if a member of a Service has left it, or if `before` is None (unknown)."""
    if before is after:
        return False
    if before is None:
        return True
    known = after.changes_since(before) if isinstance(after, Evolved) else None
    if known is not None:
        return any(old is not None and new != old for old, new in known.values())
    return any(after.get(key) != value for key, value in before.items())


class SocketKeeper:
    """Sweeps when a member has left, again a second later, and every resync_seconds.

    `places` returns the current namespaces. Everything except for the sweep itself runs in the event loop.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[Place]],
        peers: Peers,
        name_of: Callable[[int], str],
        resync_seconds: float,
        available: bool = True,
    ) -> None:
        # Sockets that were ended since the start, by IP version.
        self.ended_by_version: Counter[int] = Counter()
        # A sentence for each failure of the last sweep.
        self.problems: list[str] = []
        self._places = places
        self._peers = peers
        self._name_of = name_of
        self._resync_seconds = resync_seconds
        self._available = available
        self._members: Members | None = None
        self._left = asyncio.Event()

    @property
    def ended(self) -> int:
        """How many sockets were ended since the start."""
        return self.ended_by_version.total()

    def members(self, members: Members) -> None:
        """Set the current content of nn_member. The mapping must not change afterwards."""
        if lost(self._members, members):
            self._left.set()
        self._members = members

    async def keep(self) -> None:
        """Sweep until cancelled. Returns at once if the kernel cannot end sockets."""
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
            await asyncio.sleep(SECOND_SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        members = self._members
        if members is None:
            return
        done = await asyncio.to_thread(sweep, list(self._places()), members, self._peers)
        for (owner, service_id, backend), count in done.ended.items():
            self.ended_by_version[backend.addr.version] += count
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
