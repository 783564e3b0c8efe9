"""STATUS (SPEC.md 1.1.0, section 2): tells whether an ADD would succeed now."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from nodenet.cni import podpool
from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Store
from nodenet.cni.ranges import RangeSet
from nodenet.cni.request import Request
from nodenet.endpoint import IPNetwork
from nodenet.link.handle import Link


def status(
    node: Link,
    conf: NetConf,
    sets: Sequence[RangeSet],
    pods: Sequence[IPNetwork],
    healthy: Callable[[], str],
    request: Request,
) -> None:
    """Raises CniError: code 50 if no ADD can succeed (a range without a free address, a lease folder that is not
    writable, another interface with the bridge's name), code 51 if the agent has a problem, because running pods may
    be affected too, or the error of another IPAM plugin."""
    where = f"network {conf.name}"
    if trouble := healthy():
        raise CniError(Code.LIMITED, f"{where}: the agent of this node has a problem: {trouble}")
    found = node.get(conf.bridge)
    if found is not None and found.kind != "bridge":
        raise CniError(Code.NOT_AVAILABLE, f"{where}: interface {conf.bridge} is not a bridge")
    if conf.delegate:
        from nodenet.cni.delegate import Delegate

        Delegate.of(conf.delegate, request).status()
    if conf.ipam is None:
        return
    store = Store(conf.ipam.data_dir, conf.name)
    folder = store.folder
    # ADD creates missing folders, so check the nearest existing one.
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK) or _read_only(folder):
        raise CniError(Code.NOT_AVAILABLE, f"{where}: leases cannot be written to {store.folder}")
    elsewhere = podpool.taken_names(store, sets, pods)
    for entry in sets:
        if store.is_full(entry, elsewhere):
            message = f"{where}: no free address in {entry}: all {entry.usable} are leased"
            raise CniError(Code.NOT_AVAILABLE, message, f"leases are files in {store.folder}")


def _read_only(folder: os.PathLike[str]) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
