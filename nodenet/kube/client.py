"""List and watch of the Kubernetes API. Its events keep a Store equal to the cluster, also across errors of server and
network.

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
from nodenet.kube.health import Failures, KindStats, Recovery
from nodenet.kube.session import NETWORK_ERRORS, REQUEST_SECONDS, AnswerError, Session
from nodenet.model import ObjectRef
from nodenet.store import Delta, Listing, Op, Removal, StoreEvent

log = logging.getLogger(__name__)

PAGE_SIZE = 500
# The API server ends a watch after timeoutSeconds. It is random within these bounds, so that the watches of many agents
# do not restart at the same time.
WATCH_SECONDS = (240, 480)
# Bookmarks arrive about once a minute, at most 75 s apart. A watch that is silent for this long may be dead behind a
# proxy that keeps its own side open, so it is started again.
IDLE_SECONDS = 90.0
# After one of these statuses the watch is retried from the same resourceVersion. After any other status: a new list.
_RETRY_SAME_VERSION = (401, 403, 429, 500, 502, 503)


_OPS = {op.value: op for op in Op}

# Every API server that can serve custom resources lists this group in /apis.
_CRD_GROUP = "apiextensions.k8s.io"


class _RelistError(Exception):
    """The watch cannot continue after what the server sent: start again with a list."""


# Errors of a list or watch. Each is handled by a retry.
_RETRIED_ERRORS = (_RelistError, AnswerError, *NETWORK_ERRORS)


class KubeClient:
    """The API servers of one cluster. Use it as an async context manager; `stats` may be read at any time."""

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
        """Events of one kind, without an end: first a Listing, then changes, and a new Listing whenever changes may
        have been missed. Never raises because of a server or network error."""
        version: str | None = None
        servers = " or ".join(self._session.access.servers)
        failures = Failures(kind, servers, self.stats[kind], self._recovery, self._spread)
        absence = Absence(kind)
        while True:
            try:
                if version is None:
                    listing, version = await self._list(kind)
                    absence.record_event(listing)
                    failures.listed()
                    yield listing
                failures.watch_starts()
                async for new_version, event in self._watch(kind, version, failures.connected):
                    failures.succeeded()
                    # An event without a resourceVersion does not move the place to continue from.
                    version = new_version or version
                    if event is not None:
                        absence.record_event(event)
                        yield event
                pause = failures.watch_ended()
            except _RETRIED_ERRORS as error:
                version = None if _must_relist(error) else version
                report = await self._error_to_report(kind, error, absence)
                # The kind was just confirmed as not installed: its objects are gone, and the first sync is complete.
                if report is None and self.stats[kind].installed:
                    yield Listing(kind, ())
                pause = failures.failed(report) if report else failures.absent()
            if pause and await self._recovery.wait(pause):
                failures.reset_backoff()

    async def _error_to_report(self, kind: ApiKind, error: Exception, absence: Absence) -> Exception | None:
        """The error to report for a failed list or watch. None if the optional kind is confirmed as not installed."""
        # Only a 404 for an optional kind may mean that it is not installed.
        if not (kind.optional and isinstance(error, AnswerError) and error.code == 404):
            absence.reset()
            return error
        if absence.confirmed:
            return None
        try:
            missing = await self._discovery_lacks(kind)
        except _RETRIED_ERRORS as discovery_error:
            absence.reset()
            return discovery_error
        if not missing:
            absence.reset()
            return error
        if absence.record_missing(time.monotonic()):
            return None
        return AnswerError(404, f"not served; its objects are deleted only if this lasts {GONE_SECONDS:g} s")

    async def _discovery_lacks(self, kind: ApiKind) -> bool:
        """Whether the API's discovery documents show that it does not serve the kind. A server with incomplete
        discovery, or one that is not a Kubernetes API, does not count as a server without the kind."""
        resource = kind.resource
        try:
            async with self._get(kind, resource.base) as response:
                served = msgspec.json.decode(await response.read(), type=protocol.ResourceList)
        except AnswerError as error:
            if error.code != 404 or not resource.group:
                raise
            # The group and version are not served. The list of all groups must confirm this below.
        else:
            names = [entry.name for entry in served.resources or ()]
            return served.kind == "APIResourceList" and resource.plural not in names
        async with self._get(kind, "/apis") as response:
            known = msgspec.json.decode(await response.read(), type=protocol.GroupList)
        groups = {group.name: [v.group_version for v in group.versions or ()] for group in known.groups or ()}
        return _CRD_GROUP in groups and resource.api_version not in groups.get(resource.group, ())

    async def _list(self, kind: ApiKind) -> tuple[Listing, str]:
        """All pages of a list, and its resourceVersion: all pages show the state at that version."""
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
                    # The store keeps the previous version of an object that exists but cannot be decoded.
                    keep += [error.ref] if error.ref else []
                else:
                    self.stats[kind].note(kind, found.ref, found.unread, found.uid)
                    seen.add(found.ref)
                    objects += [found.obj] if found.obj is not None else []
            # A server without resourceVersions: a watch from "0" starts at any version.
            version = page.metadata.resource_version or "0"
            if not page.metadata.continue_:
                self.stats[kind].lists += 1
                # Problems of objects that no longer exist are not reported any more.
                for gone in self.stats[kind].unread.keys() - seen - set(keep):
                    self.stats[kind].note(kind, gone, ())
                return Listing(kind, tuple(objects), tuple(keep)), version
            params["continue"] = page.metadata.continue_

    async def _watch(
        self, kind: ApiKind, version: str, connected: Callable[[], None]
    ) -> AsyncIterator[tuple[str, StoreEvent | None]]:
        """One watch, until the server ends it or it is idle for too long. Yields the resourceVersion to continue from,
        and the event (None for a bookmark or an unreadable object)."""
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
            lines = _lines(response.content, partial(self._received, kind))
            while True:
                try:
                    line = await anext(lines, None)
                except aiohttp.SocketTimeoutError:
                    log.debug("%s: no data for %g seconds: the watch starts again", kind, self._idle_seconds)
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
        if event.type not in _OPS:
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
                # Without the name we do not know which object to delete: only a list shows what is left.
                raise _RelistError("an object without a readable name was deleted") from error
            # Skip the event: the store keeps the previous version of the object.
            return error.version, None
        self.stats[kind].note(kind, decoded.ref, decoded.unread, decoded.uid)
        if decoded.obj is None:
            # The agent no longer uses this version of the object, but the store may hold an earlier one.
            return decoded.version, Removal(kind, decoded.ref)
        return decoded.version, Delta(_OPS[event.type], decoded.obj)

    def _report(self, kind: ApiKind, error: DecodeError) -> None:
        """Report an object that cannot be used at all."""
        if error.ref is not None:
            text = f"{error}: its last readable version stays in force"
            self.stats[kind].note(kind, error.ref, (text,), error.uid)
            return
        self.stats[kind].undecodable += 1
        self.stats[kind].nameless += 1
        log.warning("object ignored: %s", error)

    def _received(self, kind: ApiKind) -> None:
        self.stats[kind].last_byte = time.monotonic()

    @asynccontextmanager
    async def _get(
        self, kind: ApiKind, path: str, params: dict[str, str] | None = None, read_seconds: float = REQUEST_SECONDS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET whose answer is 200. Any answer, also an error, shows that the server is reachable."""
        try:
            async with self._session.get(path, params, read_seconds) as response:
                self._received(kind)
                yield response
        except AnswerError:
            self._received(kind)
            raise


def _must_relist(error: Exception) -> bool:
    """Whether a new list is needed: an event may be lost after an unreadable line, and a status such as 410 Gone means
    that the server no longer has this resourceVersion."""
    if isinstance(error, AnswerError):
        return error.code not in _RETRY_SAME_VERSION
    return isinstance(error, _RelistError | msgspec.DecodeError)


async def _lines(content: aiohttp.StreamReader, on_data: Callable[[], None]) -> AsyncIterator[bytes]:
    """Lines of any length. An incomplete line at the end of the connection is dropped. `on_data` is called for every
    chunk."""
    rest: list[bytes] = []
    async for chunk in content.iter_any():
        on_data()
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for part in others:
            line = b"".join(rest)
            rest = [part]
            if line.strip():
                yield line
