"""Endpoint files: the persistent record of each pod attachment on this node. The agent reads them at its start.

    <run_dir>/endpoints/<container>-<ifname>.json   a model.Endpoint and the location of its leases, written atomically
    <run_dir>/endpoints/<container>-<ifname>.busy   held with flock while a verb works on the attachment; it describes
                                                    the attachment, and without a lock it was left by a crash
    <run_dir>/endpoints/ids/<n>                     a symlink to the name of the attachment with endpoint_id n
    <run_dir>/endpoints/ids/last                    the last assigned number

The folder is on a tmpfs: a reboot empties it, and also ends the pods.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet.cni.errors import CniError, Code, with_filename
from nodenet.cni.owner import Owner
from nodenet.cni.signals import pause
from nodenet.endpoint import Endpoint, ObjectRef
from nodenet.link import smallfile

# The programs name the owner of an entry with 15 bits of the number (bpf/lib/owner.h). A record of an earlier version
# may have a larger one and keeps it: two such pods may share the entries of their callers from outside.
MAX_ENDPOINT_ID = 32767
# Seconds that a verb waits for another verb on the same attachment.
BUSY_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment: the endpoint, its network, and the location of that network's leases (None: it has no leases)."""

    endpoint: Endpoint
    network: str
    data_dir: Path | None
    # How to release the addresses of another IPAM plugin: a delegate.Delegate as text.
    delegation: str = ""

    @property
    def owner(self) -> Owner:
        return Owner(self.endpoint.container_id, self.endpoint.ifname)

    def to_json(self) -> str:
        e = self.endpoint
        body = {
            "version": 1,
            "network": self.network,
            "dataDir": str(self.data_dir or ""),
            "endpointId": e.endpoint_id,
            "containerId": e.container_id,
            "ifname": e.ifname,
            "netns": e.netns,
            "hostIfname": e.host_ifname,
            "hostIfindex": e.host_ifindex,
            "mac": e.mac,
            "ips": [str(address) for address in e.ips],
            "podNamespace": e.pod.namespace,
            "podName": e.pod.name,
            "podUid": e.pod_uid,
            "bridged": e.bridged,
            "bridge": e.bridge,
            "hairpin": e.hairpin,
        }
        if self.delegation:
            body["delegation"] = self.delegation
        return json.dumps(body, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Raises ValueError if a field is missing or has the wrong type."""
        body: Any = json.loads(text)
        try:
            endpoint = Endpoint(
                endpoint_id=int(body["endpointId"]),
                container_id=str(body["containerId"]),
                ifname=str(body["ifname"]),
                netns=str(body["netns"]),
                host_ifname=str(body["hostIfname"]),
                host_ifindex=int(body["hostIfindex"]),
                mac=str(body["mac"]),
                ips=tuple(ip_address(address) for address in body["ips"]),
                pod=ObjectRef(str(body["podNamespace"]), str(body["podName"])),
                pod_uid=str(body["podUid"]),
                bridged=body.get("bridged") is True,
                bridge=str(body.get("bridge", "")),
                hairpin=body.get("hairpin") is True,
            )
            data_dir = Path(str(body["dataDir"])) if body["dataDir"] else None
            return cls(endpoint, str(body["network"]), data_dir, str(body.get("delegation", "")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an endpoint record: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Crashed:
    """An attachment whose verb was killed. `netns` is "" if a DEL had none."""

    owner: Owner
    network: str
    data_dir: Path | None
    netns: str


class Records:
    """The endpoint files of one node. All methods may raise OSError."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "endpoints"
        self.ids = self.folder / "ids"

    def all(self) -> tuple[list[Record], list[str]]:
        """All records, sorted by endpoint_id, and a sentence for each file that cannot be read (it is not deleted)."""
        found, problems = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Record.from_json(path.read_text()))
            except FileNotFoundError:
                continue
            except (ValueError, OSError) as error:
                problems.append(f"endpoint file {path}: {error}")
        return sorted(found, key=lambda record: record.endpoint.endpoint_id), problems

    def get(self, owner: Owner) -> Record | None:
        """The record of one attachment, or None. A damaged file raises ValueError."""
        try:
            return Record.from_json(smallfile.read(self._path(owner, "json")))
        except FileNotFoundError:
            return None

    def put(self, record: Record) -> None:
        """Write a record atomically, so that a crash leaves no partial one."""
        path = self._path(record.owner, "json")
        temporary = path.with_suffix(".new")
        smallfile.write(temporary, record.to_json(), os.O_TRUNC)
        temporary.rename(path)

    def drop(self, owner: Owner, endpoint_id: int = 0, search: bool = True) -> None:
        """Delete an attachment's record and free its number. If the number is not given, all numbers are searched,
        unless `search` is False: use that for an attachment that left neither a record nor the mark of a crash.
        Idempotent."""
        if endpoint_id or search or self._path(owner, "json").exists():
            with self._locked():
                names = [self.ids / str(endpoint_id)] if endpoint_id else list(self.ids.iterdir())
                for path in names:
                    if path.is_symlink() and str(path.readlink()) == owner.stem:
                        path.unlink()
        for suffix in ("new", "json"):
            self._path(owner, suffix).unlink(missing_ok=True)

    @contextmanager
    def busy(
        self,
        owner: Owner,
        timeout: float = BUSY_TIMEOUT,
        network: str = "",
        data_dir: Path | None = None,
        netns: str = "",
    ) -> Iterator[bool]:
        """Hold the attachment while a verb works on it. Gives True if a killed verb left its mark. The other arguments
        are stored for `crashed`, in case this verb is killed.

        Only a kill leaves the mark; an exception removes it. Raises CniError with code 11 if another process holds the
        attachment for longer than `timeout` seconds.
        """
        path = self._path(owner, "busy")
        deadline = time.monotonic() + timeout
        try:
            fd, crashed = _hold(path, deadline)
        except FileNotFoundError:
            self.ids.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, crashed = _hold(path, deadline)
        try:
            # A killed verb has left its note: keep it.
            if network and not (crashed and os.fstat(fd).st_size):
                note = [owner.container_id, owner.ifname, network, str(data_dir or ""), netns]
                with with_filename(path):
                    os.write(fd, json.dumps(note).encode())
            yield crashed
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def crashed(self) -> list[Crashed]:
        """Attachments with a mark. This includes verbs that are running now, which hold the lock (see `busy`). A
        mark without content is skipped."""
        found = []
        for path in self.folder.glob("*.busy"):
            with suppress(OSError, ValueError, TypeError):
                container_id, ifname, network, data_dir, netns = map(str, json.loads(path.read_text()))
                found.append(Crashed(Owner(container_id, ifname), network, Path(data_dir) if data_dir else None, netns))
        return found

    def allocate_id(self, owner: Owner) -> int:
        """The next free endpoint_id, in a cycle, so that a number is not reused soon. Raises CniError if none is
        free."""
        with self._locked():
            last = f"{self.ids}/last"
            start = 0
            # Without a valid last number, start at the first one.
            with suppress(FileNotFoundError, ValueError):
                start = int(smallfile.read(last))
            for step in range(MAX_ENDPOINT_ID):
                number = (start + step) % MAX_ENDPOINT_ID + 1
                if self._claim(number, owner):
                    smallfile.write(last, str(number))
                    return number
        raise CniError(Code.POOL_EXHAUSTED, f"this node has {MAX_ENDPOINT_ID} endpoints already")

    def _claim(self, number: int, owner: Owner) -> bool:
        path = self.ids / str(number)
        try:
            path.symlink_to(owner.stem)
        except FileExistsError:
            stem = str(path.readlink())
            # A crash after the number was taken and before the record was written leaves a link without a record: such
            # a number is free.
            if any((self.folder / f"{stem}.{suffix}").exists() for suffix in ("json", "busy")) and stem != owner.stem:
                return False
            path.unlink()
            path.symlink_to(owner.stem)
        return True

    def _path(self, owner: Owner, suffix: str) -> Path:
        return self.folder / f"{owner.stem}.{suffix}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        how = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(self.ids, how)
        except FileNotFoundError:
            self.ids.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.ids, how)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _hold(path: Path, deadline: float) -> tuple[int, bool]:
    """Open and lock a file that its last holder may unlink at any time. After locking, check that the path still
    names this file."""
    while True:
        existed = path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    return fd, existed
        except BlockingIOError:
            pass
        os.close(fd)
        if time.monotonic() > deadline:
            raise CniError(Code.TRY_AGAIN, f"{path.stem}: another ADD or DEL is working on it")
        pause(0.01)
