"""List and watch of the Kubernetes API. Its events keep a Store equal to the cluster, also across errors of server and
network. One list or watch is in reader.py; here is what follows after each, and after each error."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from nodenet.kinds import API_KINDS, NODE, ApiKind
from nodenet.kube import discovery
from nodenet.kube.absence import GONE_SECONDS, Absence
from nodenet.kube.config import ClusterAccess
from nodenet.kube.health import Failures, KindStats, Recovery
from nodenet.kube.herd import Herd
from nodenet.kube.reader import DEFAULTS, IncompleteError, NoStreamError, Options, Reader, RelistError
from nodenet.kube.session import NETWORK_ERRORS, AnswerError, Session
from nodenet.store import Listing, StoreEvent

log = logging.getLogger(__name__)

# After one of these statuses the watch is retried from the same resourceVersion. After any other status: a new list.
_RETRY_SAME_VERSION = (401, 403, 429, 500, 502, 503)
# After this many streaming lists that end too early, lists in pages are used.
_MOST_INCOMPLETE = 3

# Errors of a list or watch. Each is handled by a retry.
_RETRIED_ERRORS = (RelistError, IncompleteError, AnswerError, *NETWORK_ERRORS)


class _Source:
    """Reads one kind, as a streaming list while the server has them."""

    def __init__(self, reader: Reader, herd: Herd) -> None:
        self.reader = reader
        self.streams = reader.options.streams
        self._herd = herd
        self._incomplete = 0
        self._listed = False
        # Whether the next list waits for its moment. A list that is tried again does not: the pause was enough.
        self._waits = True
        # Where the next watch continues. "": a list is needed first.
        self._version = ""

    async def events(self, failures: Failures) -> AsyncGenerator[StoreEvent]:
        """A list if one is needed, and a watch until it ends. Raises _RETRIED_ERRORS."""
        if not self._version and self._waits:
            await (self._herd.before_new_list() if self._listed else self._herd.before_first_list())
            self._waits = False
        failures.watch_starts()
        if self._version or not self.streams:
            if not self._version:
                listing, self._version = await self.reader.list()
                yield self._complete(listing, failures)
            steps = self.reader.watch(self._version, failures.connected)
        else:
            steps = self.reader.stream(failures.connected)
        async with aclosing(steps) as events:
            async for version, event in events:
                # An event without a resourceVersion does not move the place to continue from.
                self._version = version or self._version
                if isinstance(event, Listing):
                    yield self._complete(event, failures)
                    continue
                failures.succeeded()
                if event is not None:
                    if self.reader.kind is NODE:
                        self._herd.record(event)
                    yield event

    def _complete(self, listing: Listing, failures: Failures) -> Listing:
        self._listed = True
        self._incomplete = 0
        failures.listed()
        failures.watch_starts()
        if listing.kind is NODE:
            self._herd.record(listing)
        return listing

    def failed(self, error: Exception) -> None:
        """Decide where to continue after an error."""
        if _must_relist(error) and self._version:
            self.reader.saw(self._version)
            self._version = ""
            self._waits = True
        if not self._listed and _is_outage(error):
            self._waits = self._herd.first_list_failed()
        if isinstance(error, IncompleteError):
            self._incomplete += 1
            self.streams = self._incomplete < _MOST_INCOMPLETE


class KubeClient:
    """The API servers of one cluster. Use it as an async context manager; `stats` may be read at any time."""

    def __init__(
        self,
        access: ClusterAccess,
        kinds: Iterable[ApiKind] = API_KINDS,
        *,
        options: Options = DEFAULTS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
        nodes_file: Path | None = None,
    ) -> None:
        """`nodes_file`: where the number of nodes is kept for the next start (herd.py)."""
        self.stats = {kind: KindStats() for kind in kinds}
        self._options = options
        self._spread = spread
        self._session = Session(access)
        self._herd = Herd(self._session, sleep, spread, nodes_file)
        self._recovery = Recovery(self._herd)

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
        servers = " or ".join(self._session.access.servers)
        failures = Failures(kind, servers, self.stats[kind], self._recovery, self._spread)
        absence = Absence(kind)
        reader = Reader(kind, self._session, self.stats[kind], self._spread, self._options)
        source = _Source(reader, self._herd)
        while True:
            try:
                if absence.confirmed and await discovery.group_is_unknown(reader):
                    pause = failures.absent()
                else:
                    async with aclosing(source.events(failures)) as events:
                        async for event in events:
                            absence.record_event(event)
                            yield event
                    pause = failures.watch_ended()
            except NoStreamError as error:
                log.info("%s: %s: no streaming lists (%s): using lists in pages", servers, kind, error)
                source.streams = False
                continue
            except _RETRIED_ERRORS as error:
                source.failed(error)
                report = await self._error_to_report(reader, error, absence)
                # The kind was just confirmed as not installed: its objects are gone, and the first sync is complete.
                if report is None and self.stats[kind].installed:
                    yield Listing(kind, ())
                pause = failures.failed(report) if report else failures.absent()
            if pause and await self._recovery.wait(pause):
                failures.reset_backoff()

    async def _error_to_report(self, reader: Reader, error: Exception, absence: Absence) -> Exception | None:
        """The error to report for a failed list or watch. None if the optional kind is confirmed as not installed."""
        # Only a 404 for an optional kind may mean that it is not installed.
        if not (reader.kind.optional and isinstance(error, AnswerError) and error.code == 404):
            absence.reset()
            return error
        try:
            missing = await discovery.lacks(reader)
        except _RETRIED_ERRORS as discovery_error:
            absence.reset()
            return discovery_error
        if not missing:
            absence.reset()
            return error
        if absence.record_missing(time.monotonic()):
            return None
        return AnswerError(404, f"not served; its objects are deleted only if this lasts {GONE_SECONDS:g} s")


def _is_outage(error: Exception) -> bool:
    """Whether the server could not be reached, or is overloaded."""
    if isinstance(error, AnswerError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, aiohttp.ClientError | TimeoutError | OSError)


def _must_relist(error: Exception) -> bool:
    """Whether a new list is needed: an event may be lost after an unreadable line, and a status such as 410 Gone means
    that the server no longer has this resourceVersion."""
    if isinstance(error, AnswerError):
        return error.code not in _RETRY_SAME_VERSION
    return isinstance(error, RelistError | msgspec.DecodeError)
