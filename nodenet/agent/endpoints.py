"""Keeps this node's endpoints equal in the endpoint files and in the Store, and both programs on each veth.

Most endpoints come by CNI ADD. While no agent listens, the plugin creates and deletes endpoints without it and records
that in the files. The agent reads them once it listens, and then whenever the folder changes.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nodenet import kinds
from nodenet.agent.host import netns_cookie
from nodenet.cni.detach import recover
from nodenet.cni.owner import Owner
from nodenet.cni.records import Record, Records
from nodenet.endpoint import AttachmentKey
from nodenet.errors import NodenetError
from nodenet.model import Endpoint
from nodenet.store import Delta, Listing, Op, Removal, Snapshot, StoreEvent

log = logging.getLogger(__name__)

# A folder's mtime is only as precise as the kernel's tick. For this long after a change, an earlier read may have
# missed further changes.
_SETTLED_SECONDS = 1.0
# How many logged problems are remembered. The limit bounds the memory when many pods come and go.
_MOST_LOGGED = 1024


class Wires(Protocol):
    """The methods of agent.host.Host that are used here."""

    async def attach(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int: ...

    async def isolate(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int: ...

    async def exists(self, endpoint: Endpoint) -> bool: ...

    async def netns_id(self, endpoint: Endpoint) -> int | None: ...


class Enforcer(Protocol):
    """The methods of nodenet.engine.Engine that are used here."""

    def feed(self, *events: StoreEvent) -> bool: ...

    def snapshot(self) -> Snapshot: ...

    async def in_force(self) -> None: ...


class Endpoints:
    """All methods run in the event loop."""

    def __init__(self, run_dir: Path, host: Wires, engine: Enforcer, programs: Mapping[str, int]) -> None:
        # A sentence for each endpoint whose programs could not be attached. Each `sync_from_disk` tries again.
        self.unpoliced: dict[AttachmentKey, str] = {}
        self._run_dir = run_dir
        self._records = Records(run_dir)
        self._host = host
        self._engine = engine
        self._programs = programs
        self._read_at = 0.0
        # Problems that were logged, oldest first, so that each is logged only once.
        self._logged: dict[str, None] = {}

    async def read(self) -> None:
        """Call it at the start. Cleans up after killed CNI verbs and after pods that no longer exist, and feeds the
        other endpoints to the engine. It attaches no programs."""
        for problem in await asyncio.to_thread(recover, self._run_dir):
            log.warning("%s", problem)
        alive = [record.endpoint for record in await self._readable() if await self._has_interface(record.endpoint)]
        found = [await self._numbered(endpoint) for endpoint in alive]
        self._engine.feed(Listing(kinds.ENDPOINT, tuple(found)))

    async def isolate(self) -> int:
        """Call it at the start, before any list from the API. Endpoints that the plugin created without the agent have
        no programs. Attaching them cuts the endpoints off until their rules are known. Returns how many were attached.
        Never raises for a veth."""
        return sum([await self._isolate(endpoint) for endpoint in self.known()])

    async def attach_all(self) -> int:
        """Attach both programs to every known endpoint. Returns how many were not up to date. Never raises for a
        veth."""
        return sum([await self._attach(endpoint) for endpoint in self.known()])

    async def repair(self, endpoint: Endpoint) -> int:
        """Attach the programs that an endpoint has lost. Returns how many. If that fails, `unpoliced` has the reason,
        and `sync_from_disk` tries again."""
        return await self._attach(endpoint) if endpoint in self.known() else 0

    def known(self) -> list[Endpoint]:
        """All endpoints of this node."""
        return list(self._engine.snapshot().endpoints.values())

    def added(self, endpoint: Endpoint) -> None:
        """Feed a new endpoint to the engine. The next compilation has it."""
        self._engine.feed(Delta(Op.ADDED, endpoint))

    def deleted(self, key: AttachmentKey) -> None:
        """Remove an endpoint whose interface is gone or will be. Does nothing for an unknown one."""
        self.unpoliced.pop(key, None)
        self._engine.feed(Removal(kinds.ENDPOINT, key))

    async def sync_from_disk(self) -> int:
        """Take over endpoints that the plugin created without the agent, and remove those that it deleted. Returns how
        many programs were attached. If nothing changed, it costs only one stat(2)."""
        attached = sum([await self._attach(e) for e in self.known() if key_of(e) in self.unpoliced])
        if not self._due():
            return attached
        known = self.known()
        new = [record for record in await self._readable() if record.endpoint not in known]
        # Isolate new endpoints first. Their rules come afterwards.
        attached += sum([await self._isolate(record.endpoint) for record in new])
        found = [record.endpoint for record in new if await self._adopt(record)]
        for endpoint in self.known():
            # The record exists before the agent gets an ADD, and until it has handled a DEL. So without a record the
            # plugin has deleted the endpoint.
            if not self._file(Owner(endpoint.container_id, endpoint.ifname), "json").exists():
                log.info("endpoint of %s was removed without the agent", endpoint.pod)
                self.deleted(key_of(endpoint))
        if found:
            await self._engine.in_force()
        return attached + sum([await self._attach(endpoint) for endpoint in found])

    async def _adopt(self, record: Record) -> bool:
        endpoint = record.endpoint
        if not await self._has_interface(endpoint):
            return False
        endpoint = await self._numbered(endpoint)
        # No await from here on, so the agent handles a DEL that begins now only after this. If a verb works on the
        # endpoint, skip it: the verb ends with a change of the folder, which causes another sync.
        if self._is_busy(record.owner) or not self._file(record.owner, "json").exists():
            return False
        log.info("endpoint of %s was made without the agent: it is policed now", endpoint.pod)
        self.added(endpoint)
        return True

    async def _isolate(self, endpoint: Endpoint) -> int:
        try:
            return await self._host.isolate(endpoint, self._programs)
        except (NodenetError, OSError) as error:
            # Only debug level: `_attach`, which follows, reports the endpoint as not policed.
            log.debug("endpoint of %s: %s", endpoint.pod, error)
            return 0

    async def _attach(self, endpoint: Endpoint) -> int:
        key = key_of(endpoint)
        try:
            attached = await self._host.attach(endpoint, self._programs)
        except (NodenetError, OSError) as error:
            if await self._host.exists(endpoint):
                self._log_once(f"endpoint of {endpoint.pod} is not policed: {error}")
                self.unpoliced[key] = f"endpoint of {endpoint.pod} is not policed: {error}"
            else:
                # The interface is gone: a DEL is under way, or the pod was killed. There is nothing left to police.
                self._log_once(f"endpoint of {endpoint.pod}: its interface {endpoint.host_ifname} is gone")
                self.deleted(key)
            return 0
        self.unpoliced.pop(key, None)
        return attached

    async def _readable(self) -> list[Record]:
        records, problems = await asyncio.to_thread(self._records.all)
        for problem in problems:
            self._log_once(problem)
        return records

    async def _has_interface(self, endpoint: Endpoint) -> bool:
        if await self._host.exists(endpoint):
            return True
        self._log_once(f"endpoint of {endpoint.pod}: its interface {endpoint.host_ifname} is gone")
        return False

    async def _numbered(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint with the id and cookie of its namespace. The programs need them to look up its sockets, and
        events contain them."""
        cookie = await asyncio.to_thread(netns_cookie, endpoint.netns)
        return replace(endpoint, netns_id=await self._host.netns_id(endpoint), netns_cookie=cookie)

    def _log_once(self, problem: str) -> None:
        if problem not in self._logged:
            self._logged[problem] = None
            log.warning("%s", problem)
        if len(self._logged) > _MOST_LOGGED:
            del self._logged[next(iter(self._logged))]

    def _due(self) -> bool:
        try:
            changed = self._records.folder.stat().st_mtime
        except FileNotFoundError:
            return False
        if changed < self._read_at - _SETTLED_SECONDS:
            return False
        self._read_at = time.time()
        return True

    def _file(self, owner: Owner, suffix: str) -> Path:
        return self._records.folder / f"{owner.stem}.{suffix}"

    def _is_busy(self, owner: Owner) -> bool:
        """True if a CNI verb works on the attachment now (Records.busy)."""
        try:
            fd = os.open(self._file(owner, "busy"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


def key_of(endpoint: Endpoint) -> AttachmentKey:
    return AttachmentKey(endpoint.container_id, endpoint.ifname)
