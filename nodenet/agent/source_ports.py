"""Reserves the ports that replace those of clients outside, so that no socket of the node gets one of them.

A node without ports for its own sockets cannot call anything: neither the kubelet nor this agent could reach the API.
So ports are reserved only if enough others are left, and released if they are not any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
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
    """`wanted`: the ports; None: none, and those of an earlier configuration are released."""

    def __init__(self, run_dir: Path, wanted: Range | None) -> None:
        # A sentence if the last check failed.
        self.problems: list[str] = []
        self._run_dir = run_dir
        self._wanted = wanted

    async def refresh(self) -> None:
        """Once."""
        try:
            await asyncio.to_thread(self.sync)
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

    def sync(self) -> None:
        """Once, in the namespace of the calling thread. Raises OSError, ValueError, and BadInputError if the ports are
        not reserved because they are too many."""
        mine = ours(self._run_dir)
        others = reserved_ports.without(reserved_ports.read(), mine)
        refused = too_few_left(self._wanted, others, reserved_ports.local()) if self._wanted else None
        if mine and (self._wanted is None or refused or not all(_within(one, self._wanted) for one in mine)):
            release(self._run_dir)
            mine = ()
        if refused:
            raise refused
        if self._wanted is None:
            return
        fresh = reserved_ports.without((self._wanted,), reserved_ports.read())
        if not fresh:
            return
        _note(self._run_dir, (*mine, *fresh))
        try:
            reserved_ports.add(fresh)
        except (OSError, ValueError):
            _note(self._run_dir, mine)
            raise
        log.info("ports %s are reserved for calls from outside", reserved_ports.render(fresh))


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


def _within(one: Range, other: Range) -> bool:
    return other[0] <= one[0] and one[1] <= other[1]
