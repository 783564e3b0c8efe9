"""An address of the node's pod networks is given once, whatever network asks for it.

Leases are kept per network, as the reference keeps them, and two networks may have the same ranges: on bridges of their
own that is right. The pod networks of a node are another matter: each pod's address in them is routed and policed by
itself, by the whole cluster.
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
from nodenet.cni.patience import pause
from nodenet.cni.ranges import RangeSet
from nodenet.endpoint import IPAddress, IPNetwork

Taken = Callable[[IPAddress], bool]


@contextmanager
def elsewhere(store: Store, run_dir: Path, sets: Sequence[RangeSet], pods: Sequence[IPNetwork]) -> Iterator[Taken]:
    """Whether another network of the same dataDir leases an address of `pods`, the node's pod networks. While the block
    runs no other ADD takes one. Raises CniError with code 11 when somebody keeps the lock."""
    if not _overlap(sets, pods):
        yield lambda address: False
        return
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(f"{run_dir}/pod-addresses.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait(fd, store.network, time.monotonic() + LOCK_SECONDS)
        folders = others(store)

        def taken(address: IPAddress) -> bool:
            # Most nodes have one network: then there is nothing to look for.
            return any(os.path.lexists(f"{folder}/{address}") for folder in folders) and _is_pods(address, pods)

        yield taken
    finally:
        os.close(fd)


def taken_names(store: Store, sets: Sequence[RangeSet], pods: Sequence[IPNetwork]) -> set[str]:
    """Names of the other networks' leases, where `sets` give addresses of the node's pod networks."""
    if not _overlap(sets, pods):
        return set()
    return {name for folder in others(store) for name in Store(Path(folder).parent, Path(folder).name).names()}


def others(store: Store) -> list[str]:
    """Lease folders of the other networks beside the store's."""
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
                message = f"network {network}: somebody keeps the lock of pod addresses for over {LOCK_SECONDS:g} s"
                raise CniError(Code.TRY_AGAIN, message) from None
            pause(0.001)
        else:
            return
