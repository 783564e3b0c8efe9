"""Ensures that an address of the node's pod networks is assigned only once, even if several networks use these ranges.

Leases are stored per network, as in the reference plugin, and two networks may have the same ranges if each has its own
bridge. This does not hold for the node's pod networks: the whole cluster routes each of these addresses, and policy
applies to it, so it must be unique.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import LOCK_SECONDS, Store
from nodenet.cni.ranges import RangeSet
from nodenet.cni.signals import pause
from nodenet.endpoint import IPAddress, IPNetwork

Taken = Callable[[IPAddress], bool]


@contextmanager
def elsewhere(store: Store, run_dir: Path, sets: Sequence[RangeSet], pods: Sequence[IPNetwork]) -> Iterator[Taken]:
    """Gives a function that tells whether another network of the same dataDir leases an address of `pods`, the
    node's pod networks. While the block runs, no other ADD can take such an address. Raises CniError with code 11 if
    another process holds the lock too long."""
    if not _overlap(sets, pods):
        yield lambda address: False
        return
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(f"{run_dir}/pod-addresses.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait(fd, store.network, time.monotonic() + LOCK_SECONDS)
        folders = others(store)

        def taken(address: IPAddress) -> bool:
            # On most nodes there is only one network, so `folders` is empty.
            return any(os.path.lexists(f"{folder}/{address}") for folder in folders) and _is_pods(address, pods)

        yield taken
    finally:
        os.close(fd)


def taken_names(store: Store, sets: Sequence[RangeSet], pods: Sequence[IPNetwork]) -> set[str]:
    """Names of the other networks' leases if `sets` overlap with the node's pod networks, else empty."""
    if not _overlap(sets, pods):
        return set()
    return {name for folder in others(store) for name in Store(Path(folder).parent, Path(folder).name).names()}


def others(store: Store) -> list[str]:
    """Lease folders of the other networks in the same dataDir."""
    try:
        with os.scandir(store.folder.parent) as entries:
            return [entry.path for entry in entries if entry.name != store.folder.name and entry.is_dir()]
    except FileNotFoundError:
        return []


def _overlap(sets: Sequence[RangeSet], pods: Sequence[IPNetwork]) -> bool:
    return any(
        found.start.version == network.version and found.start <= network[-1] and network[0] <= found.end  # type: ignore[operator]
        for entry in sets
        for found in entry.ranges
        for network in pods
    )


def _is_pods(address: IPAddress, pods: Sequence[IPNetwork]) -> bool:
    return any(address in network for network in pods)


def _wait(fd: int, network: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                message = (
                    f"network {network}: another process has held the lock of pod addresses for over {LOCK_SECONDS:g} s"
                )
                raise CniError(Code.TRY_AGAIN, message) from None
            pause(0.001)
        else:
            return
