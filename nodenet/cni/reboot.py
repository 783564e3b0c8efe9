"""Frees leases from before the last reboot, for which no runtime will ever send a DEL.

`<dataDir>/<network>/.boot` contains the kernel's boot id of our last use of the folder. If it differs from the current
boot id, all leases are from before the reboot (or the reference plugin created them since): no namespace of that time
still exists. As an additional check, an address that any network namespace of this node has now stays leased, and if a
namespace cannot be read, all leases stay. A folder that we use for the first time is only marked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nodenet.cni.errors import with_filename
from nodenet.cni.ipam import Store
from nodenet.endpoint import IPAddress
from nodenet.link import smallfile
from nodenet.link.everywhere import addresses_everywhere

log = logging.getLogger("nodenet.cni")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK = ".boot"


def _alive() -> frozenset[IPAddress] | None:
    # Not strict: runtimes mount the namespaces of their pods, so unreadable processes do not matter.
    return addresses_everywhere(strict=False)


def reclaim(store: Store, alive: Callable[[], frozenset[IPAddress] | None] = _alive) -> list[IPAddress]:
    """Free the leases from before a reboot and return their addresses. Without a reboot this only reads a small file.

    `alive` returns all addresses of all namespaces, or None if they cannot be determined. Raises OSError, CniError.
    """
    now, mark = smallfile.read(BOOT_ID).strip(), store.folder / _MARK
    if (marked := _read(mark, now)) == now or not store.folder.is_dir():
        return []
    freed: list[IPAddress] = []
    with store.locked():
        if not marked:
            _put(mark, now)
            return []
        if _read(mark, now) == now:
            return []
        leases = store.leases()
        living = alive() if leases else frozenset()
        if living is None:
            log.warning(
                "network %s: leases from before the reboot are kept, because not every namespace can be read",
                store.network,
            )
            return []
        for address, owner in leases.items():
            if address not in living:
                with suppress(FileNotFoundError):
                    (store.folder / str(address)).unlink()
                if store.index:
                    store.index.discard(owner, address)
                freed.append(address)
        _put(mark, now)
    if freed:
        log.warning("network %s: freed %d leases from before the reboot", store.network, len(freed))
    return freed


def _read(mark: Path, now: str) -> str:
    """The boot id in a mark file; "" if the file is missing or damaged (its length differs from that of a boot id):
    a damaged mark must not free leases."""
    try:
        text = smallfile.read(mark).strip()
    except FileNotFoundError:
        return ""
    return text if len(text) == len(now) else ""


def _put(mark: Path, now: str) -> None:
    """Write the mark atomically: a partial one would look like a boot id of another boot."""
    temporary = mark.with_suffix(".new")
    try:
        with with_filename(temporary):
            temporary.write_text(now)
        temporary.rename(mark)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
