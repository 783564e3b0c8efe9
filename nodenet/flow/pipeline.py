"""Decodes ring-buffer records and puts flows into the ring. The agent calls it for every event. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable

from nodenet.abi import DropReason
from nodenet.flow import kernel
from nodenet.flow.ring import Ring
from nodenet.flow.service_flows import ServiceFlows
from nodenet.flow.types import Flow, Lost, LostSource, NameTable

# The largest number of records kept for `nodenet monitor --last`; each takes 145 bytes.
MAX_RECORDS = 4095
_UNNAMED = NameTable()
_POLICY_DENIED = int(DropReason.POLICY_DENIED)


def _no_names() -> NameTable:
    return _UNNAMED


class Pipeline:
    """`names` returns the newest table; it is called for each event. `clock_offset` is ns from CLOCK_MONOTONIC to the
    epoch; the agent sets it again after the wall clock was set. `node_cookie`: as in ServiceFlows. `records` holds the
    newest records in their original form."""

    def __init__(
        self, ring: Ring[Flow], clock_offset: int, names: Callable[[], NameTable] = _no_names, node_cookie: int = 0
    ) -> None:
        self.ring = ring
        self.records: Ring[bytes] = Ring(min(ring.capacity, MAX_RECORDS))
        self.clock_offset = clock_offset
        self._names = names
        # What is known about flows to each Service.
        self.services = ServiceFlows(node_cookie)
        # The number of records that could not be decoded, and the error of the last one.
        self.undecoded = 0
        self.last_error = ""
        self._number = 0

    def receive(self, record: bytes) -> None:
        """Process one record. Never raises, because it is called from C. Undecodable records are counted and reported
        as lost."""
        try:
            event = kernel.decode(record)
        except kernel.DecodeError as error:
            self.undecoded += 1
            self.last_error = str(error)
            self._lost(Lost(LostSource.AGENT, 1))
            return
        self._number += 1
        self.records.append(record)
        names = self._names()
        if event.service_id:
            self.services.note(event, names.services.keys())
        flow = kernel.to_flow(event, names, self.clock_offset, self._number)
        if flow.drop_reason == _POLICY_DENIED:
            # Hubble's clients ask for policy verdicts: one that denies comes before its drop.
            self.ring.append(kernel.denial(flow))
            self._number += 1
            flow = flow._replace(number=self._number)
        self.ring.append(flow)

    def lost_in_kernel(self, flows: int, now: int) -> None:
        """Report to readers that the kernel's ring buffer had no room for `flows` events. `now` is ns since the
        epoch."""
        if flows > 0:
            self._lost(Lost(LostSource.KERNEL, flows, 0, now))

    def _lost(self, lost: Lost) -> None:
        self.records.append(lost)
        self.ring.append(lost)
