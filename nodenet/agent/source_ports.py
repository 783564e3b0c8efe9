"""Reserves the ports that replace those of clients outside, and those that are served on the node's addresses, so that
no socket of the node gets one of them.

A packet from outside to a served port may belong to the Service, or be the answer to a socket that has this port.

A node without ports for its own sockets cannot call anything: neither the kubelet nor this agent could reach the API.
So ports are reserved only if enough others are left, and released if they are not any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from nodenet.errors import BadInputError
from nodenet.link import reserved_ports
from nodenet.link.reserved_ports import Range

log = logging.getLogger(__name__)

# Seconds between two checks.
CHECK_SECONDS = 30.0
# In the run directory: the ports that an agent reserved and no other program had reserved before.
_FILE = "reserved-ports"
# The kernel's default range has 28,232 ports, and 16,384 of them are left with the default of `source_ports`.
LEAST_LEFT = 8192


def noted(run_dir: Path) -> bool:
    """Whether an agent reserved ports."""
    return (run_dir / _FILE).exists()


def ours(run_dir: Path) -> tuple[Range, ...]:
    """The ports that an agent reserved. Raises OSError, and BadInputError for a damaged file."""
    path = run_dir / _FILE
    try:
        return reserved_ports.parse(path.read_text())
    except FileNotFoundError:
        return ()
    except ValueError as error:
        hint = f"compare sysctl net.{reserved_ports.KEY.replace('/', '.')}, and delete the file"
        raise BadInputError(f"{path}: {error}", hint) from None


def release(run_dir: Path) -> None:
    """Reserve our ports no longer. Raises OSError, ValueError, BadInputError."""
    reserved_ports.remove(ours(run_dir))
    (run_dir / _FILE).unlink(missing_ok=True)


class SourcePorts:
    """`wanted`: the ports; None: none, and those of an earlier configuration are released. `served` returns the ports
    of Services and hostPorts on the node's addresses, or None while they are not known: then ours stay."""

    def __init__(
        self, run_dir: Path, wanted: Range | None, served: Callable[[], Collection[int] | None] = frozenset
    ) -> None:
        # A sentence if the last check failed.
        self.problems: list[str] = []
        self._run_dir = run_dir
        self._wanted = wanted
        self._served = served

    async def refresh(self) -> None:
        """Once."""
        try:
            served = self._served()
            await asyncio.to_thread(self.sync, served)
        except (OSError, ValueError) as error:
            self._failed(f"net/{reserved_ports.KEY} cannot be changed: {error}")
        except BadInputError as error:
            self._failed(f"{error} ({error.hint})")
        else:
            self.problems = []

    def _failed(self, why: str) -> None:
        problem = f"{why}; sockets of this node may use the same ports as calls from outside"
        if self.problems != [problem]:
            log.warning("%s", problem)
        self.problems = [problem]

    async def keep(self) -> None:
        """Until cancelled. Without ports it ends."""
        while True:
            await self.refresh()
            if self._wanted is None and not self.problems:
                return
            await asyncio.sleep(CHECK_SECONDS)

    def sync(self, served: Collection[int] | None = ()) -> None:
        """Once, in the namespace of the calling thread. Raises OSError, ValueError, and BadInputError if ports are not
        reserved because they are too many."""
        mine = ours(self._run_dir)
        others, local = reserved_ports.without(reserved_ports.read(), mine), reserved_ports.local()
        refused = too_few_left(self._wanted, others, local) if self._wanted else None
        target: tuple[Range, ...] = (self._wanted,) if self._wanted and not refused else ()
        if self._wanted and served is None:
            target = (*target, *reserved_ports.without(mine, (self._wanted,)))
        elif self._wanted and served:
            target, why_not = _with_served(target, served, others, local)
            refused = refused or why_not
        if gone := reserved_ports.without(mine, target):
            reserved_ports.remove(gone)
            mine = reserved_ports.without(mine, gone)
            _note(self._run_dir, mine)
        if fresh := reserved_ports.without(target, reserved_ports.read()):
            self._reserve(mine, fresh)
        if refused:
            raise refused

    def _reserve(self, mine: Sequence[Range], fresh: Sequence[Range]) -> None:
        _note(self._run_dir, (*mine, *fresh))
        try:
            reserved_ports.add(fresh)
        except (OSError, ValueError):
            _note(self._run_dir, mine)
            raise
        log.info("ports %s are reserved for calls from outside", reserved_ports.render(fresh))


def _with_served(
    target: tuple[Range, ...], served: Collection[int], others: Sequence[Range], local: Range
) -> tuple[tuple[Range, ...], BadInputError | None]:
    """`target` and the served ports that the kernel could choose, or why these are not reserved. Pure."""
    ports = reserved_ports.ranges({port for port in served if local[0] <= port <= local[1]})
    both = (*target, *ports)
    left = reserved_ports.count(reserved_ports.without((local,), (*others, *both)))
    if reserved_ports.without(ports, (*others, *target)) and left < LEAST_LEFT:
        why = f"{left} of net/{reserved_ports.LOCAL_KEY} would be left, expected at least {LEAST_LEFT}"
    elif not reserved_ports.fits((*others, *both)):
        why = f"net/{reserved_ports.KEY} has no room for them"
    else:
        return both, None
    return target, BadInputError(
        f"{reserved_ports.count(ports)} served ports of net/{reserved_ports.LOCAL_KEY} ({local[0]}-{local[1]}) are not "
        f"reserved: {why}",
        "keep node ports and hostPorts outside of that range",
    )


def too_few_left(wanted: Range, others: Sequence[Range], local: Range) -> BadInputError | None:
    """Why `wanted` must not be reserved; None if it may be. `others`: what other programs reserved; `local`: the range
    from which the kernel chooses. Pure."""
    before = reserved_ports.without((local,), others)
    after = reserved_ports.without(before, (wanted,))
    left = reserved_ports.count(after)
    # Ports outside of the range take nothing from a node whose range is small.
    if left >= LEAST_LEFT or after == before:
        return None
    return BadInputError(
        f"source_ports: {wanted[0]}-{wanted[1]} are not reserved: of the {reserved_ports.count(before)} ports of "
        f"net/{reserved_ports.LOCAL_KEY} ({local[0]}-{local[1]}) {left} would be left for sockets of this node, "
        f"expected at least {LEAST_LEFT}",
        "set source_ports in the configuration to ports outside of that range, or make the range larger",
    )


def _note(run_dir: Path, ports: Sequence[Range]) -> None:
    """Write down which ports are ours, completely or not at all. Before they are reserved: if the agent ends between
    the two, the next one releases ports that were not reserved, which has no effect. In the other order no agent would
    ever release them."""
    if not ports:
        (run_dir / _FILE).unlink(missing_ok=True)
        return
    words = reserved_ports.render(ports)
    new = run_dir / f".{_FILE}.new"
    new.write_text(words + "\n")
    new.replace(run_dir / _FILE)
