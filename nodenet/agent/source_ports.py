"""Reserves the ports that replace those of clients outside, so that no socket of the node gets one of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from nodenet.link import reserved_ports
from nodenet.link.reserved_ports import Range

log = logging.getLogger(__name__)

# Seconds between two checks.
CHECK_SECONDS = 30.0
# In the run directory: the ports that an agent reserved and nobody else had reserved before.
_FILE = "reserved-ports"


def ours(run_dir: Path) -> tuple[Range, ...]:
    """The ports that an agent reserved. Raises OSError, ValueError."""
    try:
        return reserved_ports.parse((run_dir / _FILE).read_text())
    except FileNotFoundError:
        return ()


def release(run_dir: Path) -> None:
    """Reserve our ports no longer. Raises OSError, ValueError."""
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
            if not self.problems:
                log.warning("%s: %s", reserved_ports.KEY, error)
            words = "sockets of this node may use the same ports as calls from outside"
            self.problems = [f"net/{reserved_ports.KEY} cannot be written, so {words}: {error}"]
            return
        self.problems = []

    async def keep(self) -> None:
        """Until cancelled. Without ports it ends."""
        while True:
            await self.refresh()
            if self._wanted is None and not self.problems:
                return
            await asyncio.sleep(CHECK_SECONDS)

    def sync(self) -> None:
        """Once, in the namespace of the calling thread. Raises OSError, ValueError."""
        mine = ours(self._run_dir)
        if mine and (self._wanted is None or not all(_within(one, self._wanted) for one in mine)):
            release(self._run_dir)
            mine = ()
        if self._wanted is None:
            return
        fresh = reserved_ports.add(self._wanted)
        if not fresh:
            return
        both = reserved_ports.ranges({port for low, high in (*mine, *fresh) for port in range(low, high + 1)})
        words = ",".join(f"{low}-{high}" for low, high in both)
        (self._run_dir / _FILE).write_text(words + "\n")
        log.info("ports %s are reserved for calls from outside", words)


def _within(one: Range, other: Range) -> bool:
    return other[0] <= one[0] and one[1] <= other[1]
