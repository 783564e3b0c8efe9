"""Keeps the programs for Services on the interfaces that lead out of the node: attached while they are wanted, removed
from everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from nodenet.agent import attachment
from nodenet.agent.host import no_uplink
from nodenet.bpf import tcx
from nodenet.errors import NodenetError
from nodenet.link import tc, uplink
from nodenet.link.handle import ARPHRD_ETHER, Interface, Link
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

# Seconds between two checks: another program may remove ours, and the kernel does not tell.
CHECK_SECONDS = 2.0
_OFF = "Services are not served for traffic from outside: uplink_programs is false"
_NOWHERE = "no interface has the programs for traffic from outside"


@dataclass(frozen=True, slots=True)
class Synced:
    """What one check found. `interfaces`: names of those that have the programs now. `attached`: names of those where
    one was missing or of another build. `removed`: names of those that had them and should not. `failed`: a sentence
    for each interface that refused them. `unserved`: a sentence for each one that cannot have them, or whose address is
    served but which has none."""

    interfaces: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ends:
    """Where traffic from outside enters and leaves: the interface `name`, or with "" what uplink.find_all finds for the
    node's own addresses and those that are served. `own` None: the Node is not known yet."""

    name: str
    own: frozenset[IPAddress] | None
    is_served: Callable[[IPAddress], bool] = lambda _: False


def sync(link: Link, ends: Ends | None, programs: Mapping[str, int], before: Iterable[str] | None) -> Synced:
    """Attach the programs (descriptors by name). `ends` None: to no interface. Remove them from other interfaces: of
    those in `before`, or None: of all. Raises LinkError, OSError."""
    found = _wanted(link, ends) if ends is not None else []
    wanted = {one.index: one.name for one in found if one.hardware == ARPHRD_ETHER}
    # The programs read an Ethernet header.
    unserved = [
        f"uplink {one.name}: its packets have no Ethernet header, so Services are not served on it"
        for one in found
        if one.index not in wanted
    ]
    there: list[str] = []
    attached: list[str] = []
    failed: list[str] = []
    for index, interface in wanted.items():
        try:
            if attachment.attach(link, index, programs, hooks=attachment.UPLINK_HOOKS):
                attached.append(interface)
            there.append(interface)
        except (NodenetError, OSError) as error:
            failed.append(f"uplink {interface}: its programs are not attached: {error}")
    if ends is not None:
        if not found and ends.name:
            failed.append(no_uplink(ends.name, ends.own or ()))
        unserved += [
            f"interface {interface} has no programs for traffic from outside, so {address} is served for this node only"
            for interface, address in uplink.without(link, (one.index for one in found), ends.is_served)
        ]
    others = link.all() if before is None else [other for old in before if (other := link.get(old)) is not None]
    removed = [other.name for other in others if other.index not in wanted and detach(link, other.index)]
    return Synced(tuple(there), tuple(attached), tuple(removed), tuple(failed), tuple(unserved))


def _wanted(link: Link, ends: Ends) -> list[Interface]:
    """Without the Node, the interfaces that an earlier agent chose stay."""
    if ends.own is None and not ends.name and (found := attached_to(link)):
        return found
    return uplink.find_all(link, ends.name, ends.own or (), ends.is_served)


def attached_to(link: Link) -> list[Interface]:
    """All interfaces that have one of our programs. Raises LinkError, OSError."""
    return [found for found in link.all() if _names(link, found.index) & attachment.UPLINK_HOOKS.keys()]


def _names(link: Link, ifindex: int) -> set[str]:
    by_tcx = tcx.attached(ifindex) if attachment.mechanism() is attachment.Mechanism.TCX else []
    return {entry.name for entry in by_tcx} | {entry.name for entry in tc.attached(link, ifindex)}


def detach(link: Link, ifindex: int) -> bool:
    """Remove our programs from an interface. False if it has none. Raises LinkError, OSError."""
    found = False
    for name, hook in attachment.UPLINK_HOOKS.items():
        if attachment.mechanism() is attachment.Mechanism.TCX:
            found |= tcx.detach(ifindex, hook.tcx, tcx.kernel_name(name))
        found |= tc.detach(link, ifindex, hook.clsact, name)
    return found


class UplinkPrograms:
    """`check` makes one check (`sync`) with its argument `before`. All methods run in the event loop."""

    def __init__(self, check: Callable[[Iterable[str] | None], Awaitable[Synced]], *, enabled: bool) -> None:
        self.interfaces: tuple[str, ...] = ()
        self.problems: list[str] = []
        # Why traffic from outside is not served, "" if it is.
        self.why_not = _OFF if not enabled else _NOWHERE
        self._check = check
        self._enabled = enabled
        # An earlier agent may have attached the programs to other interfaces.
        self._everywhere = True

    async def refresh(self) -> None:
        """Once."""
        try:
            found = await self._check(None if self._everywhere else self.interfaces)
        except (NodenetError, OSError) as error:
            self._report([f"uplinks: their programs could not be checked: {error}"])
            return
        self._everywhere = False
        for interface in found.attached:
            if interface in self.interfaces:
                log.warning("uplink %s had lost its programs: put back", interface)
            else:
                log.info("uplink %s got the programs for Services", interface)
        for interface in found.removed:
            log.info("interface %s is no uplink: the programs for Services were removed", interface)
        self.interfaces = found.interfaces
        if self._enabled:
            # With an interface that refused them, a part of the traffic is not served.
            self.why_not = next(iter(found.failed), "" if found.interfaces else _NOWHERE)
        self._report([*found.failed, *found.unserved])

    async def keep(self, ready: asyncio.Event) -> None:
        """Until cancelled, from when `ready` is set. Switched off, it removes the programs and ends."""
        await ready.wait()
        while True:
            await self.refresh()
            if not self._enabled and not self.problems:
                return
            await asyncio.sleep(CHECK_SECONDS)

    def _report(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = problems
