"""Whose an address is when several pods show it: the one place that turns an address into a pod.

After a node restart, or while a pod terminates, the API shows one address in two pods: the live one and a ghost. A
policy speaks of the pod that has the address now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from netpolicy.types import IPAddress

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Standing(NamedTuple):
    """How good a pod's claim to its address is; of two, the greater one has it.

    `lasting`: without a deletionTimestamp. `ready`: its Ready condition. `started`: status.startTime, or when it was
    created; RFC 3339 in UTC, which compares as text; empty where neither can be read.
    """

    lasting: bool = True
    ready: bool = False
    started: str = ""

    @classmethod
    def of(cls, deleted: object, ready: object, *times: object) -> Standing:
        """From the fields' values: metadata.deletionTimestamp, the Ready condition's status, and the times in the order
        in which they are preferred."""
        fine = [time for time in times if isinstance(time, str) and _TIME.fullmatch(time)]
        return cls(not deleted, ready == "True", fine[0] if fine else "")


# Of a pod of which no more is known than that it exists.
UNKNOWN = Standing()


class Holder(Protocol):
    """What a pod must tell of itself."""

    @property
    def ips(self) -> tuple[IPAddress, ...]: ...

    @property
    def holds_addresses(self) -> bool:
        """False for hostNetwork pods, whose address is the node's, and for Succeeded and Failed ones."""
        ...

    @property
    def claim(self) -> Any:
        """The Standing, then what makes the answer the same everywhere."""
        ...


P = TypeVar("P", bound=Holder)


def holder(pods: Iterable[P]) -> P:
    """The one of several pods (at least one) that has the address which all of them show."""
    return max(pods, key=lambda pod: pod.claim)


def holders(pods: Iterable[P]) -> dict[IPAddress, P]:
    """Every pod address, with the pod that has it."""
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
    """Which pods show which address; pods come and go by name."""

    def __init__(self) -> None:
        self._pods: dict[IPAddress, dict[tuple[str, str], P]] = {}

    def change(self, ref: tuple[str, str], old: P | None, new: P | None) -> set[IPAddress]:
        """One pod is another now. Returns the addresses whose holder may be another too."""
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
        """The pod that has the address; None when no pod shows it."""
        claims = self._pods.get(address)
        return holder(claims.values()) if claims else None
