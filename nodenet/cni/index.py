"""Who holds which lease, without reading every lease: one small file per owner, in a folder of this boot.

    <run_dir>/leases/<hash of the lease folder>/seen     that folder's inode and time of change when all was in step
    <run_dir>/leases/<hash of the lease folder>/<owner>  that owner's addresses, a line each

Whoever else changes the lease folder (the reference plugin, a person, a verb that was killed) changes its time: the
index is made anew before it is asked next. It is a hint always: a lease says itself whose it is. All of it happens
under the lease folder's lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from nodenet.cni.owner import Owner
from nodenet.model import IPAddress

_SEEN = "seen"


class Index:
    """The index of one lease folder. Methods raise OSError as the file system does; `begin` and `end` never do."""

    def __init__(self, run_dir: Path, leases: Path, read_all: Callable[[], Mapping[IPAddress, Owner]]) -> None:
        self._leases = leases
        self._folder = run_dir / "leases" / hashlib.blake2b(os.fsencode(leases), digest_size=10).hexdigest()
        self._read_all = read_all
        self._current = False

    def begin(self) -> None:
        """The lock was taken: see whether somebody else was here. An index that was never made is made now."""
        try:
            self._current = (self._folder / _SEEN).read_text() == self._state()
        except OSError:
            with suppress(OSError):
                self._rebuild()

    def end(self) -> None:
        """The lock is about to be let go: what we changed is in the index."""
        if not self._current:
            return
        try:
            self._write(_SEEN, self._state())
        except OSError:
            # The old word no longer fits the folder: the next one who asks makes the index anew.
            self._current = False

    def held(self, owner: Owner) -> list[IPAddress]:
        """Addresses that the owner held when the index was last in step."""
        if not self._current:
            self._rebuild()
        try:
            return [ip_address(line) for line in self._path(owner).read_text().split()]
        except FileNotFoundError:
            return []
        except ValueError:
            self._rebuild()
            return [address for address, other in self._read_all().items() if other == owner]

    def add(self, owner: Owner, address: IPAddress) -> None:
        self._change(owner, {address}, set())

    def discard(self, owner: Owner, address: IPAddress) -> None:
        self._change(owner, set(), {address})

    def _change(self, owner: Owner, more: set[IPAddress], less: set[IPAddress]) -> None:
        if not self._current:
            return
        try:
            have = set(self.held(owner)) | more
            self._put(owner, have - less)
        except OSError:
            self._current = False

    def _put(self, owner: Owner, addresses: set[IPAddress]) -> None:
        if addresses:
            self._write(self._path(owner).name, "\n".join(sorted(map(str, addresses))))
        else:
            self._path(owner).unlink(missing_ok=True)

    def _rebuild(self) -> None:
        self._current = False
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owners: dict[Owner, set[IPAddress]] = {}
        for address, owner in self._read_all().items():
            owners.setdefault(owner, set()).add(address)
        wanted = {self._path(owner).name for owner in owners}
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        for owner, addresses in owners.items():
            self._put(owner, addresses)
        self._current = True

    def _write(self, name: str, content: str) -> None:
        fd = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)

    def _path(self, owner: Owner) -> Path:
        return self._folder / hashlib.blake2b(owner.text.encode(), digest_size=12).hexdigest()

    def _state(self) -> str:
        found = self._leases.stat()
        return f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}"
