"""Ring-buffer records in, flows in the ring out: what the agent calls for every event. Pure but for its own state."""

from __future__ import annotations

from collections.abc import Callable

from nodenet.flow import kernel
from nodenet.flow.ring import Ring
from nodenet.flow.types import Flow, Lost, LostSource, NameTable

# Records kept for `nodenet monitor --last`, at most: 145 bytes each.
MAX_RECORDS = 4095
_UNNAMED = NameTable()


def _no_names() -> NameTable:
    return _UNNAMED


class Pipeline:
    """`names` gives the newest table, once for each event; `clock_offset` is ns from CLOCK_MONOTONIC to the epoch, and
    is set again when the time of day was. `records` holds the newest records as they came."""

    def __init__(self, ring: Ring[Flow], clock_offset: int, names: Callable[[], NameTable] = _no_names) -> None:
        self.ring = ring
        self.records: Ring[bytes] = Ring(min(ring.capacity, MAX_RECORDS))
        self.clock_offset = clock_offset
        self._names = names
        # Records that were not of this ABI, and what was wrong with the last one.
        self.undecoded = 0
        self.last_error = ""
        self._number = 0

    def receive(self, record: bytes) -> None:
        """Take one record. Never raises: it is called from C. What cannot be decoded is counted and shown as lost."""
        try:
            event = kernel.decode(record)
        except kernel.DecodeError as error:
            self.undecoded += 1
            self.last_error = str(error)
            self._lost(Lost(LostSource.AGENT, 1))
            return
        self._number += 1
        self.records.append(record)
        self.ring.append(kernel.to_flow(event, self._names(), self.clock_offset, self._number))

    def lost_in_kernel(self, flows: int, now: int) -> None:
        """Tell readers that the kernel's ring buffer had no room for so many. `now` is ns since the epoch."""
        if flows > 0:
            self._lost(Lost(LostSource.KERNEL, flows, 0, now))

    def _lost(self, lost: Lost) -> None:
        self.records.append(lost)
        self.ring.append(lost)
