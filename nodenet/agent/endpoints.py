"""The attachments of this node, in the endpoint files and in the Store: each has both programs on its veth.

Most come by CNI ADD. The plugin alone makes others while no agent listens, and takes some away: the files tell, and
they are looked at again once the agent listens, and whenever the folder changes.
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

# A folder's time of change is only as fine as the kernel's tick: for so long after it, one look may have missed some.
_SETTLED_SECONDS = 1.0
# Problems that are remembered as logged. Pods that come and go must not fill the memory.
_MOST_LOGGED = 1024


class Wires(Protocol):
    """What is asked of agent.host.Host."""

    async def attach(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int: ...

    async def isolate(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int: ...

    async def exists(self, endpoint: Endpoint) -> bool: ...

    async def netns_id(self, endpoint: Endpoint) -> int | None: ...


class Enforcer(Protocol):
    """What is asked of nodenet.engine.Engine."""

    def feed(self, *events: StoreEvent) -> bool: ...

    def snapshot(self) -> Snapshot: ...

    async def in_force(self) -> None: ...


class Endpoints:
    """Everything here runs in the event loop."""

    def __init__(self, run_dir: Path, host: Wires, engine: Enforcer, programs: Mapping[str, int]) -> None:
        # Sentences about endpoints whose programs could not be attached; tried again at every look.
        self.unpoliced: dict[AttachmentKey, str] = {}
        self._run_dir = run_dir
        self._records = Records(run_dir)
        self._host = host
        self._engine = engine
        self._programs = programs
        self._looked_at = 0.0
        # What was logged, oldest first: a problem is logged once, not at every look.
        self._logged: dict[str, None] = {}

    async def read(self) -> None:
        """At the start: clean up what killed verbs and pods that are gone for good left behind, then know the rest.
        None has its programs yet."""
        for problem in await asyncio.to_thread(recover, self._run_dir):
            log.warning("%s", problem)
        alive = [record.endpoint for record in await self._readable() if await self._lives(record.endpoint)]
        found = [await self._numbered(endpoint) for endpoint in alive]
        self._engine.feed(Listing(kinds.ENDPOINT, tuple(found)))

    async def isolate(self) -> int:
        """At the start, before the API has said anything: what the plugin alone made has no programs, and with them it
        is cut off until its rules are known. How many were attached. Never raises for a veth."""
        return sum([await self._isolate(endpoint) for endpoint in self.known()])

    async def attach_all(self) -> int:
        """Both programs on every known endpoint; how many were not right already. Never raises for a veth."""
        return sum([await self._attach(endpoint) for endpoint in self.known()])

    async def repair(self, endpoint: Endpoint) -> int:
        """Put both programs on an endpoint that has lost one; how many were put back. Where that fails, `unpoliced`
        says so and `look` tries again."""
        return await self._attach(endpoint) if endpoint in self.known() else 0

    def known(self) -> list[Endpoint]:
        """All endpoints of this node."""
        return list(self._engine.snapshot().endpoints.values())

    def added(self, endpoint: Endpoint) -> None:
        """For the next compilation."""
        self._engine.feed(Delta(Op.ADDED, endpoint))

    def deleted(self, key: AttachmentKey) -> None:
        """Its wires are cut, or will be: an unknown one is fine."""
        self.unpoliced.pop(key, None)
        self._engine.feed(Removal(kinds.ENDPOINT, key))

    async def look(self) -> int:
        """Take over what came and forget what went without the agent; how many programs were attached. Costs one
        stat where nothing changed."""
        attached = sum([await self._attach(e) for e in self.known() if key_of(e) in self.unpoliced])
        if not self._due():
            return attached
        known = self.known()
        new = [record for record in await self._readable() if record.endpoint not in known]
        # First of all: their rules come after that.
        attached += sum([await self._isolate(record.endpoint) for record in new])
        found = [record.endpoint for record in new if await self._adopt(record)]
        for endpoint in self.known():
            # A record is there before an ADD is told to the agent, and until a DEL was.
            if not self._file(Owner(endpoint.container_id, endpoint.ifname), "json").exists():
                log.info("endpoint of %s was taken away without the agent", endpoint.pod)
                self.deleted(key_of(endpoint))
        if found:
            await self._engine.in_force()
        return attached + sum([await self._attach(endpoint) for endpoint in found])

    async def _adopt(self, record: Record) -> bool:
        endpoint = record.endpoint
        if not await self._lives(endpoint):
            return False
        endpoint = await self._numbered(endpoint)
        # Nothing is awaited from here on: a DEL that begins now tells the agent after this. A verb at work ends with a
        # change of the folder.
        if self._is_held(record.owner) or not self._file(record.owner, "json").exists():
            return False
        log.info("endpoint of %s was made without the agent: it is policed now", endpoint.pod)
        self.added(endpoint)
        return True

    async def _isolate(self, endpoint: Endpoint) -> int:
        try:
            return await self._host.isolate(endpoint, self._programs)
        except (NodenetError, OSError) as error:
            # `_attach`, which comes after this, says what is not policed.
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
                # Its DEL is on the way, or its pod was killed: nothing is left to police.
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

    async def _lives(self, endpoint: Endpoint) -> bool:
        if await self._host.exists(endpoint):
            return True
        self._log_once(f"endpoint of {endpoint.pod}: its interface {endpoint.host_ifname} is gone")
        return False

    async def _numbered(self, endpoint: Endpoint) -> Endpoint:
        """With the numbers of its namespace: for the programs, which look up its sockets in it, and for events."""
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
        if changed < self._looked_at - _SETTLED_SECONDS:
            return False
        self._looked_at = time.time()
        return True

    def _file(self, owner: Owner, suffix: str) -> Path:
        return self._records.folder / f"{owner.stem}.{suffix}"

    def _is_held(self, owner: Owner) -> bool:
        """Whether a verb works on the attachment now (Records.busy)."""
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
