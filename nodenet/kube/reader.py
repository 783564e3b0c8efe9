"""Reads the objects of one kind from the API: a list in pages, a watch, or a streaming list, which is both in one.

The protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/ (lists in pages, streaming lists, watches
from a resourceVersion, bookmarks, 410 Gone).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec

from nodenet.kinds import ApiKind
from nodenet.kube import pages, protocol
from nodenet.kube.decode import Decoded, DecodeError, decode, name_of
from nodenet.kube.health import KindStats
from nodenet.kube.idle import IdleLimit
from nodenet.kube.session import REQUEST_SECONDS, AnswerError, Session
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

_OPS = {op.value: op for op in Op}


@dataclass(frozen=True, slots=True)
class Options:
    """`streams`: whether to ask for streaming lists."""

    page_size: int = PAGE_SIZE
    idle_seconds: float = IDLE_SECONDS
    streams: bool = True


DEFAULTS = Options()


class RelistError(Exception):
    """The watch cannot continue after what the server sent: start again with a list."""


class IncompleteError(Exception):
    """A streaming list ended before all objects had arrived, or without the version to continue from."""


class NoStreamError(Exception):
    """The server does not have streaming lists."""


@dataclass(slots=True)
class _Objects:
    """What a list contains so far: for each object the model's object, None if the agent does not use it."""

    stats: KindStats
    kind: ApiKind
    found: dict[ObjectRef, object | None] = field(default_factory=dict)
    keep: set[ObjectRef] = field(default_factory=set)
    # Objects without a readable name.
    nameless: int = 0

    @property
    def size(self) -> int:
        return len(self.found) + len(self.keep) + self.nameless

    def add(self, found: Decoded) -> None:
        self.found[found.ref] = found.obj
        self.keep.discard(found.ref)

    def add_unreadable(self, ref: ObjectRef | None) -> None:
        """The store keeps the previous version of an object that exists but cannot be decoded."""
        if ref is None:
            self.nameless += 1
            return
        self.found.pop(ref, None)
        self.keep.add(ref)

    def remove(self, ref: ObjectRef) -> None:
        self.found.pop(ref, None)
        self.keep.discard(ref)

    def complete(self) -> Listing:
        self.stats.lists += 1
        # Problems of objects that no longer exist are not reported any more.
        for gone in self.stats.unread.keys() - self.found.keys() - self.keep:
            self.stats.note(self.kind, gone, ())
        return Listing(self.kind, tuple(obj for obj in self.found.values() if obj is not None), tuple(self.keep))


class Reader:
    """One kind of one cluster. `spread` returns a random number from 0 to 1."""

    def __init__(
        self, kind: ApiKind, session: Session, stats: KindStats, spread: Callable[[], float], options: Options
    ) -> None:
        self.options = options
        self.kind = kind
        self._session = session
        self._stats = stats
        self._spread = spread
        # The oldest resourceVersion that a list may show. "0": any that the server has in memory; "": the newest, which
        # it may have to read from etcd.
        self._oldest = "0"

    async def list(self) -> tuple[Listing, str]:
        """All pages of a list, and its resourceVersion: all pages show the state at that version.

        Lists are answered from the server's memory where possible, because thousands of agents may ask. That state may
        be some time old, but not older than one that this agent has seen.
        """
        objects = _Objects(self._stats, self.kind)
        progress = pages.Progress()
        params = {"limit": str(self.options.page_size), "resourceVersion": self._oldest}
        if self._oldest != "0":
            # With a limit the server would read the objects from etcd.
            params = {"resourceVersion": self._oldest, "resourceVersionMatch": "NotOlderThan"} if self._oldest else {}
        while True:
            try:
                page = await self._page(params, objects)
            except AnswerError as error:
                # 504: the server has not reached this version yet. 410: the next page has expired; with a list in
                # one piece this cannot happen again.
                self._oldest = "" if error.code in (410, 504) else self._oldest
                raise
            if not page.metadata.continue_:
                # A server without resourceVersions: a watch from "0" starts at any version.
                version = page.metadata.resource_version or "0"
                self.saw(version)
                return objects.complete(), version
            progress.check(page.metadata.continue_, objects.size)
            params = {"limit": str(self.options.page_size), "continue": page.metadata.continue_}

    async def _page(self, params: dict[str, str], objects: _Objects) -> protocol.ListPage:
        async with self.get(self.kind.resource.path(), self._selected(params)) as response:
            async for item in pages.read(self._chunks(response.content)):
                if isinstance(item, protocol.ListPage):
                    return item
                self._add(objects, item)
        raise AssertionError("the page comes last")

    def _add(self, objects: _Objects, raw: msgspec.Raw) -> None:
        try:
            found = decode(self.kind, raw)
        except DecodeError as error:
            self._report(error)
            objects.add_unreadable(error.ref)
        else:
            self._stats.note(self.kind, found.ref, found.unread, found.uid)
            objects.add(found)

    def saw(self, version: str) -> None:
        """The store has the state at this resourceVersion: later lists must not be older."""
        self._oldest = version

    async def watch(self, version: str, connected: Callable[[], None]) -> AsyncGenerator[tuple[str, StoreEvent | None]]:
        """One watch, until the server ends it or it is idle for too long. Yields the resourceVersion to continue from,
        and the event (None for a bookmark or an unreadable object)."""
        async for event in self._events({"resourceVersion": version}, connected):
            yield self._event(event)

    async def stream(self, connected: Callable[[], None]) -> AsyncGenerator[tuple[str, StoreEvent | None]]:
        """A streaming list (KEP-3157): a watch whose first event is the Listing, as new as the cluster's state when the
        request arrived. The server needs little memory for it and reads nothing from etcd.

        Raises NoStreamError if the server does not serve it, IncompleteError if it ends too early.
        """
        objects: _Objects | None = _Objects(self._stats, self.kind)
        params = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        try:
            async for event in self._events(params, connected):
                if objects is None:
                    yield self._event(event)
                elif event.type == "BOOKMARK":
                    bookmark = msgspec.json.decode(event.object, type=protocol.Bookmark)
                    if not bookmark.ends_list:
                        # Only a server that ignores sendInitialEvents sends another bookmark first.
                        raise NoStreamError("a bookmark without the mark of a complete list")
                    if not bookmark.version:
                        # No watch could continue from it: every end of the watch would need a new list.
                        raise IncompleteError("the end of the streaming list has no resourceVersion")
                    self.saw(bookmark.version)
                    yield bookmark.version, objects.complete()
                    objects = None
                else:
                    self._collect(objects, event)
        except AnswerError as error:
            # 422: the server knows the parameters, and the feature is off. 400: it does not know them.
            if objects is not None and error.code in (400, 422):
                raise NoStreamError(str(error)) from error
            raise
        if objects is not None:
            raise IncompleteError("the streaming list ended before its last object")

    def _collect(self, objects: _Objects, event: protocol.WatchEvent) -> None:
        """Add an event to an incomplete list. Raises what `_event` raises."""
        if event.type in (Op.ADDED, Op.MODIFIED):
            self._add(objects, event.object)
            return
        _version, change = self._event(event)
        assert isinstance(change, Removal)
        objects.remove(ObjectRef(*change.key))

    async def _events(
        self, params: dict[str, str], connected: Callable[[], None]
    ) -> AsyncIterator[protocol.WatchEvent]:
        idle_seconds = self.options.idle_seconds
        low, high = WATCH_SECONDS
        timeout = str(int(low + (high - low) * self._spread()))
        params = {"watch": "1", "allowWatchBookmarks": "true", **params, "timeoutSeconds": timeout}
        answer = self.get(self.kind.resource.path(), self._selected(params), idle_seconds, limits_body=False)
        async with answer as response, IdleLimit(response.content, idle_seconds, lambda: self._stats.last_byte):
            self._stats.watches += 1
            connected()
            lines = _lines(self._chunks(response.content))
            while True:
                try:
                    line = await anext(lines, None)
                except aiohttp.SocketTimeoutError:
                    log.debug("%s: no data for %g seconds: the watch starts again", self.kind, idle_seconds)
                    return
                if line is None:
                    return
                self._stats.events += 1
                yield msgspec.json.decode(line, type=protocol.WatchEvent)

    def _event(self, event: protocol.WatchEvent) -> tuple[str, StoreEvent | None]:
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=protocol.Status)
            raise AnswerError(status.code or 500, status.message or status.reason or "")
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=protocol.Bookmark).version, None
        if event.type not in _OPS:
            raise RelistError(f"unknown event type {event.type!r}")
        try:
            if event.type == Op.DELETED:
                ref, version = name_of(self.kind, event.object)
                self._stats.note(self.kind, ref, ())
                return version, Removal(self.kind, ref)
            decoded = decode(self.kind, event.object)
        except DecodeError as error:
            self._report(error)
            if event.type == Op.DELETED:
                # Without the name we do not know which object to delete: only a list shows what is left.
                raise RelistError("an object without a readable name was deleted") from error
            # Skip the event: the store keeps the previous version of the object.
            return error.version, None
        self._stats.note(self.kind, decoded.ref, decoded.unread, decoded.uid)
        if decoded.obj is None:
            # The agent no longer uses this version of the object, but the store may hold an earlier one.
            return decoded.version, Removal(self.kind, decoded.ref)
        return decoded.version, Delta(_OPS[event.type], decoded.obj)

    def _report(self, error: DecodeError) -> None:
        """Report an object that cannot be used at all."""
        if error.ref is not None:
            text = f"{error}: its last readable version stays in force"
            self._stats.note(self.kind, error.ref, (text,), error.uid)
            return
        self._stats.undecodable += 1
        self._stats.nameless += 1
        log.warning("object ignored: %s", error)

    def _selected(self, params: dict[str, str]) -> dict[str, str]:
        return {**params, "labelSelector": self.kind.selector} if self.kind.selector else params

    @asynccontextmanager
    async def get(
        self,
        path: str,
        params: dict[str, str] | None = None,
        read_seconds: float = REQUEST_SECONDS,
        *,
        limits_body: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET as of `Session.get`. Any answer, also an error, shows that the server is reachable."""
        try:
            async with self._session.get(path, params, read_seconds, limits_body=limits_body) as response:
                self._received()
                yield response
        except AnswerError:
            self._received()
            raise

    async def _chunks(self, content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
        """The data as it arrives. Other tasks run between the chunks, also when they arrive faster than we read."""
        while True:
            chunk = content.read_nowait()
            if chunk:
                await asyncio.sleep(0)
            else:
                chunk = await content.readany()
                if not chunk:
                    return
            self._received()
            yield chunk

    def _received(self) -> None:
        self._stats.last_byte = time.monotonic()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of any length. An incomplete line at the end of the connection is dropped."""
    rest: list[bytes] = []
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for part in others:
            line = b"".join(rest)
            rest = [part]
            if line.strip():
                yield line
