"""Leases that outlived their pods: those of before the last reboot, which no runtime will ever DEL.

`<dataDir>/<network>/.boot` holds the kernel's boot id of the last time that we used the folder. When that differs from
the present one, every lease that is there was made before the reboot (or by the reference plugin since): no
namespace of then is alive. Still nothing is freed on that alone: an address that any network namespace of this node
has now stays leased, and when a namespace cannot be looked into, all stay. A folder that we use for the first
time is marked only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nodenet.cni.errors import naming
from nodenet.cni.ipam import Store
from nodenet.endpoint import IPAddress
from nodenet.link import smallfile
from nodenet.link.everywhere import addresses_everywhere

log = logging.getLogger("nodenet.cni")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK = ".boot"


def _alive() -> frozenset[IPAddress] | None:
    # Runtimes mount their pods' namespaces: a process that hides its own is none of theirs.
    return addresses_everywhere(strict=False)


def reclaim(store: Store, alive: Callable[[], frozenset[IPAddress] | None] = _alive) -> list[IPAddress]:
    """Free what a reboot left over; the addresses freed. One read of a small file when there was none.

    `alive` gives every address of every namespace, None when it cannot be known. Raises OSError, CniError.
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
            log.warning("network %s: leases of before the reboot stay: not every namespace can be read", store.network)
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
        log.warning("network %s: %d leases of before the reboot are free again", store.network, len(freed))
    return freed


def _read(mark: Path, now: str) -> str:
    """The boot id in a mark, "" when there is none or it is damaged (not as long as the present one): nothing may
    follow from that."""
    try:
        text = smallfile.read(mark).strip()
    except FileNotFoundError:
        return ""
    return text if len(text) == len(now) else ""


def _put(mark: Path, now: str) -> None:
    """Whole or not at all: half a mark would look like another boot."""
    temporary = mark.with_suffix(".new")
    try:
        with naming(temporary):
            temporary.write_text(now)
        temporary.rename(mark)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
