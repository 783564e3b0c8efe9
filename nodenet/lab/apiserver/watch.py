"""Lists and watches: pages of one consistent state, then the changes after it in order, without loss or duplicates.

Rules: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Retrieving large results sets in
chunks".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nodenet.lab.apiserver import selectors
from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import bad_request, expired
from nodenet.lab.apiserver.storage import Match, Storage, Stored, field_names, visible


@dataclass(frozen=True, slots=True)
class Query:
    """Selects objects of a kind. namespace "" means all. Selectors are written as in the API's query strings."""

    resource: Resource
    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def matcher(self) -> Match:
        """A predicate for stored objects. Raises a 400 ApiError for an invalid selector."""
        labels = selectors.parse_labels(self.labels)
        fields = selectors.parse_fields(self.fields, field_names(self.resource.key))
        namespace = self.namespace if self.resource.namespaced else ""

        def match(stored: Stored) -> bool:
            if namespace and stored.ref[0] != namespace:
                return False
            return selectors.matches(labels, stored.labels) and selectors.matches_fields(fields, stored.fields)

        return match


@dataclass(frozen=True, slots=True)
class Page:
    """`token` is "" on the last page. `remaining`: the number of objects after this page."""

    items: list[Stored]
    version: int
    token: str = ""
    remaining: int = 0


def listing(storage: Storage, query: Query, limit: int = 0, token: str = "", at: int | None = None) -> Page:
    """One page. All pages of a list show the state of the first one. Raises 410 if that is older than the history."""
    match = query.matcher()
    version = storage.version if at is None else at
    start = ("", "")
    if token:
        version, start = _read_token(token)
    namespace = query.namespace if query.resource.namespaced else ""
    items = [s for s in storage.items_at(query.resource.key, namespace, version) if s.ref > start and match(s)]
    if not limit or len(items) <= limit:
        return Page(items, version)
    page = items[:limit]
    body = json.dumps([version, *page[-1].ref])
    return Page(page, version, base64.urlsafe_b64encode(body.encode()).decode(), len(items) - limit)


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        version, namespace, name = json.loads(base64.urlsafe_b64decode(token))
        return int(version), (str(namespace), str(name))
    except (ValueError, binascii.Error, TypeError) as error:
        raise bad_request("continue key is not valid") from error


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """ADDED, MODIFIED or DELETED with the object, or BOOKMARK without one. `initial_end`: a bookmark after the last of
    the initial objects."""

    type: str
    version: int
    object: Stored | None = None
    initial_end: bool = False


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """`version` None or 0: start with all existing objects as ADDED. `timeout` in seconds; None: without limit."""

    version: int | None = None
    timeout: float | None = None
    bookmark_seconds: float | None = None
    initial_events: bool | None = None


async def watch(storage: Storage, query: Query, options: WatchOptions) -> AsyncIterator[WatchEvent]:
    """Yield the changes since `version`. Raises a 410 ApiError if the version is older than the history, at the start
    or later when the reader is too slow."""
    match = query.matcher()
    log = storage.logs[query.resource.key]
    loop = asyncio.get_running_loop()
    end = None if options.timeout is None else loop.time() + options.timeout
    position = options.version or storage.version
    if position > storage.version:
        raise expired(f"too large resource version: {position}, current: {storage.version}")
    if options.initial_events or (options.initial_events is None and not options.version):
        position = storage.version
        for stored in [s for s in storage.items(query.resource.key) if match(s)]:
            yield WatchEvent("ADDED", stored.version, stored)
        if options.initial_events:
            yield WatchEvent("BOOKMARK", position, initial_end=True)
    while True:
        changes = log.after(position)
        # `changes` has all changes of this kind up to the store's version, so continue from there.
        position = storage.version
        for kind, stored in visible(changes, match):
            yield WatchEvent(kind, stored.version, stored)
        if position != storage.version:
            continue
        if log.closed:
            break
        left = None if end is None else end - loop.time()
        if left is not None and left <= 0:
            break
        pauses = [pause for pause in (left, options.bookmark_seconds) if pause is not None]
        changed = await log.wait(position, min(pauses, default=None))
        if not changed and options.bookmark_seconds is not None:
            position = storage.version
            yield WatchEvent("BOOKMARK", position)
    if options.bookmark_seconds is not None:
        yield WatchEvent("BOOKMARK", position)
