"""List and watch of the Kubernetes API: what it yields, fed to a Store, keeps it equal to the cluster, through every
kind of trouble on the way.

The protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/ (lists in pages, watches from a
resourceVersion, bookmarks, 410 Gone).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from nodenet.kinds import API_KINDS, ApiKind
from nodenet.kube import protocol
from nodenet.kube.absence import GONE_SECONDS, Absence
from nodenet.kube.config import ClusterAccess
from nodenet.kube.decode import DecodeError, decode, name_of
from nodenet.kube.health import KindStats, Recovery, Trouble
from nodenet.kube.session import NETWORK_ERRORS, REQUEST_SECONDS, AnswerError, Session
from nodenet.model import ObjectRef
from nodenet.store import Delta, Listing, Op, Removal, StoreEvent

log = logging.getLogger(__name__)

PAGE_SIZE = 500
# The API server ends a watch after this long; ours differ, so that they do not all come back in one second.
WATCH_SECONDS = (240, 480)
# Bookmarks come about once a minute, at most 75 s apart: a watch that brings nothing for so long may be dead behind a
# proxy that keeps its own side open. It is asked for again.
IDLE_SECONDS = 90.0
# A watch refused with one of these may be tried again from where it was; any other status means: list again.
_PASSING = (401, 403, 429, 500, 502, 503)


# Every API server that can serve custom resources lists this group.
_CRD_GROUP = "apiextensions.k8s.io"


class _RelistError(Exception):
    """What the server sent cannot be continued from: list again."""


# What may happen to a connection, each handled by trying again.
_TROUBLE = (_RelistError, AnswerError, *NETWORK_ERRORS)


class KubeClient:
    """One API server. Use it as an async context manager; `stats` may be read at any time."""

    def __init__(
        self,
        access: ClusterAccess,
        kinds: Iterable[ApiKind] = API_KINDS,
        *,
        page_size: int = PAGE_SIZE,
        idle_seconds: float = IDLE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.stats = {kind: KindStats() for kind in kinds}
        self._page_size = page_size
        self._idle_seconds = idle_seconds
        self._recovery = Recovery(sleep)
        self._spread = spread
        self._session = Session(access)

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(kind, error, trace)

    async def watch(self, kind: ApiKind) -> AsyncIterator[StoreEvent]:
        """Everything that happens to objects of one kind, for ever: first a Listing, then changes, and a Listing again
        whenever changes may have been missed. Never raises for what a server or a network does."""
        version: str | None = None
        trouble = Trouble(kind, self._session.access.server, self.stats[kind], self._recovery, self._spread)
        absence = Absence(kind)
        while True:
            try:
                if version is None:
                    listing, version = await self._list(kind)
                    absence.happened(listing)
                    trouble.listed()
                    yield listing
                trouble.watching()
                async for new_version, event in self._watch(kind, version, trouble.connected):
                    trouble.over()
                    version = new_version or version
                    if event is not None:
                        absence.happened(event)
                        yield event
                pause = trouble.ended()
            except _TROUBLE as error:
                version = None if _must_relist(error) else version
                report = await self._judged(kind, error, absence)
                if report is None and self.stats[kind].installed:
                    yield Listing(kind, ())
                pause = trouble.began(report) if report else trouble.absent()
            if pause and await self._recovery.wait(pause):
                trouble.woken()

    async def _judged(self, kind: ApiKind, error: Exception, absence: Absence) -> Exception | None:
        """What to report of a failed list or watch. None: nothing, because the optional kind is not installed."""
        if not (kind.optional and isinstance(error, AnswerError) and error.code == 404):
            absence.unclear()
            return error
        if absence.confirmed:
            return None
        try:
            missing = await self._discovery_lacks(kind)
        except _TROUBLE as unclear:
            absence.unclear()
            return unclear
        if not missing:
            absence.unclear()
            return error
        if absence.missing(time.monotonic()):
            return None
        return AnswerError(404, f"not served; its objects stay in force until that lasts {GONE_SECONDS:g} s")

    async def _discovery_lacks(self, kind: ApiKind) -> bool:
        """Whether the API's discovery documents say that it does not serve the kind. They name what is served, so a
        server that is not complete, or that is none of Kubernetes, does not pass for one without the kind."""
        resource = kind.resource
        try:
            async with self._get(kind, resource.base) as response:
                served = msgspec.json.decode(await response.read(), type=protocol.ResourceList)
        except AnswerError as error:
            if error.code != 404 or not resource.group:
                raise
        else:
            names = [entry.name for entry in served.resources or ()]
            return served.kind == "APIResourceList" and resource.plural not in names
        async with self._get(kind, "/apis") as response:
            known = msgspec.json.decode(await response.read(), type=protocol.GroupList)
        groups = {group.name: [v.group_version for v in group.versions or ()] for group in known.groups or ()}
        return _CRD_GROUP in groups and resource.api_version not in groups.get(resource.group, ())

    async def _list(self, kind: ApiKind) -> tuple[Listing, str]:
        """All pages of a list. The resourceVersion is that of the moment that all of them show."""
        objects: list[object] = []
        keep: list[ObjectRef] = []
        seen: set[ObjectRef] = set()
        params = {"limit": str(self._page_size)}
        while True:
            async with self._get(kind, kind.resource.path(), params) as response:
                page = msgspec.json.decode(await response.read(), type=protocol.ListPage)
            for raw in page.items or ():
                try:
                    found = decode(kind, raw)
                except DecodeError as error:
                    self._report(kind, error)
                    keep += [error.ref] if error.ref else []
                else:
                    self.stats[kind].note(kind, found.ref, found.unread)
                    seen.add(found.ref)
                    objects += [found.obj] if found.obj is not None else []
            version = page.metadata.resource_version or "0"
            if not page.metadata.continue_:
                self.stats[kind].lists += 1
                for gone in self.stats[kind].unread.keys() - seen - set(keep):
                    del self.stats[kind].unread[gone]
                return Listing(kind, tuple(objects), tuple(keep)), version
            params["continue"] = page.metadata.continue_

    async def _watch(
        self, kind: ApiKind, version: str, connected: Callable[[], None]
    ) -> AsyncIterator[tuple[str, StoreEvent | None]]:
        """One watch until the server ends it: the resourceVersion to go on from, and what happened (None: nothing)."""
        low, high = WATCH_SECONDS
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(low + (high - low) * self._spread())),
        }
        async with self._get(kind, kind.resource.path(), params, self._idle_seconds) as response:
            self.stats[kind].watches += 1
            connected()
            lines = _lines(response.content, partial(self._heard, kind))
            while True:
                try:
                    line = await anext(lines, None)
                except aiohttp.SocketTimeoutError:
                    log.debug("%s: no word for %g seconds, asking again", kind, self._idle_seconds)
                    return
                if line is None:
                    return
                self.stats[kind].events += 1
                yield self._event(kind, msgspec.json.decode(line, type=protocol.WatchEvent))

    def _event(self, kind: ApiKind, event: protocol.WatchEvent) -> tuple[str, StoreEvent | None]:
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=protocol.Status)
            raise AnswerError(status.code or 500, status.message or status.reason or "")
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=protocol.Named).metadata.resource_version or "", None
        if event.type not in tuple(Op):
            raise _RelistError(f"unknown event type {event.type!r}")
        try:
            if event.type == Op.DELETED:
                ref, version = name_of(kind, event.object)
                self.stats[kind].note(kind, ref, ())
                return version, Removal(kind, ref)
            decoded = decode(kind, event.object)
        except DecodeError as error:
            self._report(kind, error)
            if event.type == Op.DELETED:
                raise _RelistError("something without a readable name was deleted") from error
            return error.version, None
        self.stats[kind].note(kind, decoded.ref, decoded.unread)
        if decoded.obj is None:
            return decoded.version, Removal(kind, decoded.ref)
        return decoded.version, Delta(Op(event.type), decoded.obj)

    def _report(self, kind: ApiKind, error: DecodeError) -> None:
        """An object of which nothing can be used."""
        if error.ref is not None:
            text = f"{error}: its last readable version stays in force"
            self.stats[kind].note(kind, error.ref, (text,))
            return
        self.stats[kind].undecodable += 1
        self.stats[kind].nameless += 1
        log.warning("left out: %s", error)

    def _heard(self, kind: ApiKind) -> None:
        self.stats[kind].last_byte = time.monotonic()

    @asynccontextmanager
    async def _get(
        self, kind: ApiKind, path: str, params: dict[str, str] | None = None, read_seconds: float = REQUEST_SECONDS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET whose answer is 200. Any answer shows that the server is there."""
        try:
            async with self._session.get(path, params, read_seconds) as response:
                self._heard(kind)
                yield response
        except AnswerError:
            self._heard(kind)
            raise


def _must_relist(error: Exception) -> bool:
    """After a broken line an event may be lost; after a refusal (410 Gone above all) the version is of no use."""
    if isinstance(error, AnswerError):
        return error.code not in _PASSING
    return isinstance(error, _RelistError | msgspec.DecodeError)


async def _lines(content: aiohttp.StreamReader, heard: Callable[[], None]) -> AsyncIterator[bytes]:
    """Lines of any length. What a cut connection leaves unfinished is dropped. `heard`: called for all that arrives."""
    rest: list[bytes] = []
    async for chunk in content.iter_any():
        heard()
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for part in others:
            line = b"".join(rest)
            rest = [part]
            if line.strip():
                yield line
