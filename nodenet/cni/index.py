"""An index of leases by owner, so that not every lease has to be read: a log of changes, in a folder that a reboot
empties.

    <run_dir>/leases/<hash of the lease folder>.log   "+<hash of the owner> <address>" or "-...", one per line
    <run_dir>/leases/<hash of the lease folder>.seen  inode and mtime of the lease folder when the index last matched it

If another program changes the lease folder (the reference plugin, a person, a killed verb), the folder's mtime changes,
and the index is rebuilt before its next use. The index is only a hint: the lease file is authoritative. All access
happens under the lock of the lease folder. Ten thousand leases make half a megabyte, which is searched in less than a
millisecond.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from nodenet.cni.owner import Owner
from nodenet.endpoint import IPAddress
from nodenet.link import smallfile

# Bytes: a longer log is rebuilt. This is some 60,000 changes.
_MAX_LOG = 1 << 22


class Index:
    """The index of one lease folder. `held` raises OSError; the other methods never do."""

    def __init__(self, run_dir: Path, leases: Path, read_all: Callable[[], Mapping[IPAddress, Owner]]) -> None:
        self._leases = leases
        stem = run_dir / "leases" / hashlib.blake2b(os.fsencode(leases), digest_size=10).hexdigest()
        self._log, self._seen = stem.with_suffix(".log"), stem.with_suffix(".seen")
        self._read_all = read_all
        self._current = False

    def begin(self) -> None:
        """Called after the lock was taken: check whether another program changed the folder. Build the index if it
        does not exist."""
        try:
            self._current = smallfile.read(self._seen) == self._state() and self._log.stat().st_size < _MAX_LOG
        except OSError:
            with suppress(OSError):
                self._rebuild()

    def end(self) -> None:
        """Called before the lock is released: mark the index as up to date."""
        if self._current:
            # If this fails, the old state no longer matches the folder, and the next user rebuilds the index.
            with suppress(OSError):
                smallfile.write(self._seen, self._state())

    def held(self, owner: Owner) -> list[IPAddress]:
        """Addresses that the owner holds according to the index, which is rebuilt first if it does not match the
        folder."""
        if not self._current:
            self._rebuild()
        key, found = _key(owner).encode(), dict[bytes, None]()
        data = self._log.read_bytes()
        at = data.find(key)
        # The sign is before the key. The last change of an address counts.
        while at > 0:
            address = data[at + len(key) : data.find(b"\n", at)]
            if data[at - 1 : at] == b"+":
                found[address] = None
            else:
                found.pop(address, None)
            at = data.find(key, at + 1)
        try:
            return [ip_address(address.decode("ascii")) for address in found]
        except ValueError:
            # The log is damaged: read the leases.
            return [address for address, other in self._read_all().items() if other == owner]

    def add(self, owner: Owner, address: IPAddress) -> None:
        self._append("+", owner, address)

    def discard(self, owner: Owner, address: IPAddress) -> None:
        self._append("-", owner, address)

    def _append(self, sign: str, owner: Owner, address: IPAddress) -> None:
        if self._current:
            try:
                smallfile.write(self._log, sign + _line(owner, address), os.O_APPEND)
            except OSError:
                self._current = False

    def _rebuild(self) -> None:
        self._current = False
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = ["+" + _line(owner, address) for address, owner in self._read_all().items()]
        smallfile.write(self._log, "".join(lines), os.O_TRUNC)
        self._current = True

    def _state(self) -> str:
        found = self._leases.stat()
        return f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}"


def _key(owner: Owner) -> str:
    return hashlib.blake2b(owner.text.encode(errors="replace"), digest_size=12).hexdigest() + " "


def _line(owner: Owner, address: IPAddress) -> str:
    return f"{_key(owner)}{address}\n"
