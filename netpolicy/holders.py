"""Decides which pod has an address that several pods list. Only this module maps addresses to pods.

After a node restart, or while a pod terminates, the API may list one address in two pods, of which one is stale. Policy
applies to the pod that has the address now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from netpolicy.types import IPAddress

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Standing(NamedTuple):
    """The strength of a pod's claim to its address: the pod with the greater value has it.

    `lasting`: no deletionTimestamp. `ready`: the Ready condition. `started`: status.startTime, or else the creation
    time, as RFC 3339 text in UTC, which sorts by time; empty if neither is valid.
    """

    lasting: bool = True
    ready: bool = False
    started: str = ""

    @classmethod
    def of(cls, deleted: object, ready: object, *times: object) -> Standing:
        """From the values of the fields: metadata.deletionTimestamp, the status of the Ready condition, and the
        times in order of preference."""
        fine = [time for time in times if isinstance(time, str) and _TIME.fullmatch(time)]
        return cls(not deleted, ready == "True", fine[0] if fine else "")


# For a pod without status.
UNKNOWN = Standing()


class Holder(Protocol):
    """The attributes that a pod must have here."""

    @property
    def ips(self) -> tuple[IPAddress, ...]: ...

    @property
    def holds_addresses(self) -> bool:
        """False for hostNetwork pods, whose address is the node's, and for Succeeded and Failed pods."""
        ...

    @property
    def claim(self) -> Any:
        """The Standing, then namespace and name, so that all nodes decide equally."""
        ...


class NamedHolder(Holder, Protocol):
    """A holder that is known by its namespace and name."""

    @property
    def ref(self) -> tuple[str, str]: ...


P = TypeVar("P", bound=Holder)
N = TypeVar("N", bound=NamedHolder)


def holder(pods: Iterable[P]) -> P:
    """The pod that has the address which all these pods (at least one) list."""
    return max(pods, key=lambda pod: pod.claim)


def holders(pods: Iterable[P]) -> dict[IPAddress, P]:
    """All pod addresses, each with the pod that has it."""
    found: dict[IPAddress, P] = {}
    for pod in pods:
        if not pod.holds_addresses:
            continue
        for address in pod.ips:
            other = found.setdefault(address, pod)
            if other is not pod and pod.claim > other.claim:
                found[address] = pod
    return found


class Claims(Generic[N]):
    """Tracks which pods list which address, while pods are added and removed by name."""

    def __init__(self) -> None:
        # Almost every address has one pod. The others have a dict of pods by name.
        self._pods: dict[IPAddress, N | dict[tuple[str, str], N]] = {}

    def change(self, old: N | None, new: N | None) -> tuple[IPAddress, ...]:
        """Replace, add or remove one pod; both arguments have the same name. Returns the addresses whose holder may
        have changed."""
        before: tuple[IPAddress, ...] = ()
        if old is not None and old.holds_addresses:
            before = old.ips
            for address in before:
                self._remove(address, old)
        if new is None or not new.holds_addresses:
            return before
        for address in new.ips:
            # Hashing an address is the expensive part: look it up once if it has no other pod.
            if self._pods.setdefault(address, new) is not new:
                self._add(address, new)
        return (*before, *new.ips) if before else new.ips

    def holder(self, address: IPAddress) -> N | None:
        """The pod that has the address; None if no pod lists it."""
        found = self._pods.get(address)
        return holder(found.values()) if isinstance(found, dict) else found

    def _add(self, address: IPAddress, pod: N) -> None:
        found = self._pods[address]
        if isinstance(found, dict):
            found[pod.ref] = pod
        else:
            self._pods[address] = pod if found.ref == pod.ref else {found.ref: found, pod.ref: pod}

    def _remove(self, address: IPAddress, pod: N) -> None:
        # It may be removed already: a pod may list an address twice.
        found = self._pods.get(address)
        if isinstance(found, dict):
            found.pop(pod.ref, None)
            if len(found) == 1:
                (self._pods[address],) = found.values()
        elif found is not None and found.ref == pod.ref:
            del self._pods[address]
