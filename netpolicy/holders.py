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


P = TypeVar("P", bound=Holder)


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


class Claims(Generic[P]):
    """Tracks which pods list which address, while pods are added and removed by name."""

    def __init__(self) -> None:
        self._pods: dict[IPAddress, dict[tuple[str, str], P]] = {}

    def change(self, ref: tuple[str, str], old: P | None, new: P | None) -> set[IPAddress]:
        """Replace, add or remove one pod. Returns the addresses whose holder may have changed."""
        touched: set[IPAddress] = set()
        if old is not None and old.holds_addresses:
            for address in old.ips:
                others = self._pods[address]
                others.pop(ref, None)
                if not others:
                    del self._pods[address]
            touched.update(old.ips)
        if new is not None and new.holds_addresses:
            for address in new.ips:
                self._pods.setdefault(address, {})[ref] = new
            touched.update(new.ips)
        return touched

    def holder(self, address: IPAddress) -> P | None:
        """The pod that has the address; None if no pod lists it."""
        claims = self._pods.get(address)
        return holder(claims.values()) if claims else None
