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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from nodenet.kube import schema
from nodenet.kube.config import ClusterAccess
from nodenet.kube.decode import DecodeError, decode, name_of
from nodenet.model import ObjectRef
from nodenet.store import API_KINDS, Delta, Kind, Listing, Op, Removal, StoredObject, StoreEvent

log = logging.getLogger(__name__)

PATHS: dict[Kind, str] = {
    Kind.POD: "/api/v1/pods",
    Kind.NAMESPACE: "/api/v1/namespaces",
    Kind.NODE: "/api/v1/nodes",
    Kind.SERVICE: "/api/v1/services",
    Kind.ENDPOINT_SLICE: "/apis/discovery.k8s.io/v1/endpointslices",
    Kind.NETWORK_POLICY: "/apis/networking.k8s.io/v1/networkpolicies",
}

PAGE_SIZE = 500
# The API server ends a watch after this long; ours differ, so that they do not all come back in one second.
WATCH_SECONDS = (240, 480)
# Bookmarks come about once a minute: a watch that says nothing for so long is a dead connection.
IDLE_SECONDS = 150.0
REQUEST_SECONDS = 60.0
CONNECT_SECONDS = 10.0
# A watch that has failed for this long is no passing thing: what the agent knows is getting old.
CUT_OFF_SECONDS = 30.0
# A watch that the server ends sooner than this, without a word, is trouble.
SHORT_WATCH_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 30.0
# A watch refused with one of these may be tried again from where it was; any other status means: list again.
_PASSING = (401, 403, 429, 500, 502, 503)


@dataclass(slots=True)
class KindStats:
    """What happened to one kind's watch. `error` is why it is not connected now, or ""; `failing_since` is when that
    began, in seconds of the monotonic clock, 0 while it is connected.
    """

    lists: int = 0
    watches: int = 0
    events: int = 0
    undecodable: int = 0
    errors: int = 0
    error: str = ""
    failing_since: float = 0.0

    def cut_off(self, now: float) -> bool:
        """Whether it has failed for longer than an API server needs to start again."""
        return bool(self.failing_since) and now - self.failing_since > CUT_OFF_SECONDS


class _RelistError(Exception):
    """What the server told cannot be continued from: list again."""


class _AnswerError(Exception):
    """An HTTP status or a Status object that is no answer. `after`: seconds to wait, as the server asked."""

    def __init__(self, code: int, message: str, after: float = 0.0) -> None:
        super().__init__(f"{code} {message}".rstrip())
        self.code = code
        self.after = after


# What may happen to a connection, each handled by trying again.
_TROUBLE = (_RelistError, _AnswerError, aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError)


class KubeClient:
    """One API server. Use it as an async context manager; `stats` may be read at any time."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        page_size: int = PAGE_SIZE,
        idle_seconds: float = IDLE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.stats = {kind: KindStats() for kind in API_KINDS}
        self._access = access
        self._page_size = page_size
        self._idle_seconds = idle_seconds
        self._sleep = sleep
        self._spread = spread
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._access.ssl or True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def watch(self, kind: Kind) -> AsyncIterator[StoreEvent]:
        """Everything that happens to objects of one kind, for ever: first a Listing, then changes, and a Listing again
        whenever changes may have been missed. Never raises for what a server or a network does."""
        version: str | None = None
        trouble = _Trouble(kind, self._access.server, self.stats[kind], self._spread)
        while True:
            try:
                if version is None:
                    listing, version = await self._list(kind)
                    trouble.over()
                    yield listing
                trouble.watching()
                async for new_version, event in self._watch(kind, version):
                    trouble.over()
                    version = new_version or version
                    if event is not None:
                        yield event
                pause = trouble.ended()
            except _TROUBLE as error:
                version = None if _must_relist(error) else version
                pause = trouble.began(error)
            if pause:
                await self._sleep(pause)

    async def _list(self, kind: Kind) -> tuple[Listing, str]:
        """All pages of a list. The resourceVersion is that of the moment that all of them show."""
        objects: list[StoredObject] = []
        keep: list[ObjectRef] = []
        params = {"limit": str(self._page_size)}
        while True:
            async with self._get(PATHS[kind], params) as response:
                page = msgspec.json.decode(await response.read(), type=schema.ListPage)
            for raw in page.items or ():
                try:
                    obj = decode(kind, raw).obj
                except DecodeError as error:
                    self._report(kind, error)
                    keep += [error.ref] if error.ref else []
                else:
                    objects += [obj] if obj is not None else []
            version = page.metadata.resource_version or "0"
            if not page.metadata.continue_:
                self.stats[kind].lists += 1
                return Listing(kind, tuple(objects), tuple(keep)), version
            params["continue"] = page.metadata.continue_

    async def _watch(self, kind: Kind, version: str) -> AsyncIterator[tuple[str, StoreEvent | None]]:
        """One watch until the server ends it: the resourceVersion to go on from, and what happened (None: nothing)."""
        low, high = WATCH_SECONDS
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(low + (high - low) * self._spread())),
        }
        async with self._get(PATHS[kind], params, self._idle_seconds) as response:
            self.stats[kind].watches += 1
            lines = _lines(response.content)
            while True:
                try:
                    line = await anext(lines, None)
                except aiohttp.SocketTimeoutError:
                    log.debug("%s: no word for %g seconds, asking again", kind, self._idle_seconds)
                    return
                if line is None:
                    return
                self.stats[kind].events += 1
                yield self._event(kind, msgspec.json.decode(line, type=schema.WatchEvent))

    def _event(self, kind: Kind, event: schema.WatchEvent) -> tuple[str, StoreEvent | None]:
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=schema.Status)
            raise _AnswerError(status.code or 500, status.message or status.reason or "")
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=schema.Named).metadata.resource_version or "", None
        if event.type not in tuple(Op):
            raise _RelistError(f"unknown event type {event.type!r}")
        try:
            if event.type == Op.DELETED:
                ref, version = name_of(kind, event.object)
                return version, Removal(kind, ref)
            decoded = decode(kind, event.object)
        except DecodeError as error:
            self._report(kind, error)
            if event.type == Op.DELETED:
                raise _RelistError("something without a readable name was deleted") from error
            return error.version, None
        if decoded.obj is None:
            return decoded.version, Removal(kind, decoded.ref)
        return decoded.version, Delta(Op(event.type), decoded.obj)

    def _report(self, kind: Kind, error: DecodeError) -> None:
        self.stats[kind].undecodable += 1
        log.warning("left out, its last readable version stays in force: %s", error)

    @asynccontextmanager
    async def _get(
        self, path: str, params: dict[str, str], read_seconds: float = REQUEST_SECONDS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET whose answer is 200; _AnswerError says what else it was."""
        assert self._session is not None, "KubeClient is used outside of its `async with`"
        headers = {"Accept": "application/json"}
        token = self._access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read_seconds)
        url, name = self._access.server + path, self._access.server_name
        async with self._session.get(
            url, params=params, headers=headers, server_hostname=name, timeout=timeout
        ) as response:
            if response.status != 200:
                raise await _answer_error(response)
            yield response


async def _answer_error(response: aiohttp.ClientResponse) -> _AnswerError:
    body = await response.content.read(1 << 16)
    try:
        status = msgspec.json.decode(body, type=schema.Status)
        message = status.message or status.reason or ""
    except msgspec.DecodeError:
        message = response.reason or ""
    after = response.headers.get("Retry-After", "")
    return _AnswerError(response.status, message, float(after) if after.isdigit() else 0.0)


class _Trouble:
    """How often in a row one kind's watch failed, how long to wait therefore, and what people are told of it."""

    def __init__(self, kind: Kind, server: str, stats: KindStats, spread: Callable[[], float]) -> None:
        self._kind = kind
        self._server = server
        self._stats = stats
        self._spread = spread
        self._failures = 0
        self._since = 0.0
        self._silent = True

    def watching(self) -> None:
        """A watch is asked for."""
        self._since = asyncio.get_running_loop().time()
        self._silent = True

    def over(self) -> None:
        """Something came."""
        if self._stats.error:
            log.info("%s: %s: connected again", self._server, self._kind)
        self._failures, self._stats.error, self._silent = 0, "", False
        self._stats.failing_since = 0.0

    def began(self, error: Exception) -> float:
        """Returns seconds to wait. The same trouble is told once."""
        self._stats.errors += 1
        text = str(error) or type(error).__name__
        level = logging.DEBUG if text == self._stats.error else logging.WARNING
        log.log(level, "%s: %s: %s; trying again", self._server, self._kind, text)
        self._stats.error = text
        self._stats.failing_since = self._stats.failing_since or time.monotonic()
        return max(self._pause(), error.after if isinstance(error, _AnswerError) else 0.0)

    def ended(self) -> float:
        """A watch came to its end, as each does every few minutes. Returns seconds to wait before the next."""
        if self._silent and asyncio.get_running_loop().time() - self._since < SHORT_WATCH_SECONDS:
            return self._pause()
        self.over()
        return 0.0

    def _pause(self) -> float:
        """Doubles with every failure; somewhere in the upper half, so that many agents do not come at once."""
        limit = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 16), LAST_BACKOFF_SECONDS)
        self._failures += 1
        return limit * (0.5 + 0.5 * self._spread())


def _must_relist(error: Exception) -> bool:
    """After a broken line an event may be lost; after a refusal (410 Gone above all) the version is of no use."""
    if isinstance(error, _AnswerError):
        return error.code not in _PASSING
    return isinstance(error, _RelistError | msgspec.DecodeError)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length. What a cut connection leaves unfinished is dropped."""
    rest: list[bytes] = []
    async for chunk in content.iter_any():
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for part in others:
            line = b"".join(rest)
            rest = [part]
            if line.strip():
                yield line
