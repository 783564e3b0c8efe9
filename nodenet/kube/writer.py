"""Writes to the Kubernetes API: patches, mostly of status, and new objects such as Events.

Writes use their own connections and retry rules (retry.py), so that they never delay a watch. No write raises because
of a server or network error: the caller gets an Outcome and decides whether to write again later.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import msgspec

from nodenet.kinds import ApiResource
from nodenet.kube import retry
from nodenet.kube.config import ClusterAccess
from nodenet.kube.refusals import Refusals
from nodenet.kube.retry import Answer, Outcome, Retry
from nodenet.kube.session import NETWORK_ERRORS, AnswerError, Session
from nodenet.model import ObjectRef

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

# The largest number of concurrent writes. Further ones wait for a connection; the wait counts towards WRITE_SECONDS.
CONNECTIONS = 4
# Timeout of one attempt, including the wait for a connection. API servers end requests other than watches after 60 s.
WRITE_SECONDS = 15.0
MANAGER = "nodenet"


class PatchType(StrEnum):
    """The content type of a patch. STRATEGIC does not work for custom resources. APPLY is server-side apply; it takes
    over the fields in the body from other managers."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Target:
    """An object, or its `subresource`."""

    resource: ApiResource
    ref: ObjectRef
    subresource: str = ""

    @property
    def path(self) -> str:
        return self.resource.path(self.ref.namespace, self.ref.name, self.subresource)

    @property
    def noun(self) -> str:
        """The name that RBAC uses: nodes/status, deployments.apps."""
        return self.resource.qualified + (f"/{self.subresource}" if self.subresource else "")

    def __str__(self) -> str:
        return f"{self.noun} {self.ref}"


@dataclass(frozen=True, slots=True)
class _Write:
    """One request. `verb` is RBAC's verb."""

    verb: str
    target: Target
    method: str
    path: str
    content_type: str
    params: Mapping[str, str]


class KubeWriter:
    """The API servers of one cluster. Use it as an async context manager."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        write_seconds: float = WRITE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self._session = Session(access, CONNECTIONS)
        self._write_seconds = write_seconds
        self._sleep = sleep
        self._spread = spread
        self._clock = clock
        self._refusals = Refusals()

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(kind, error, trace)

    def problems(self) -> list[str]:
        """The writes that RBAC does not allow, one sentence for each verb and resource."""
        return self._refusals.sentences()

    async def patch(self, target: Target, body: Object | list[Object], kind: PatchType = PatchType.MERGE) -> Outcome:
        """Patch without a resourceVersion: `body` applies to any version of the object, so it may be sent again."""
        return await self._until_done(_patch(target, kind), lambda: _ready(body))

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome:
        """Read the object, call `change` with it, and send the result as a merge patch. After a conflict with another
        writer (HTTP 409) all three are repeated. `change` returns None if nothing needs to change."""

        async def body() -> Object | None:
            path = target.resource.path(target.ref.namespace, target.ref.name)
            async with asyncio.timeout(self._write_seconds), self._session.get(path) as response:
                found = msgspec.json.decode(await response.read(), type=dict[str, Any])
            wanted = change(found)
            if wanted is None:
                return None
            version = (found.get("metadata") or {}).get("resourceVersion", "")
            return {**wanted, "metadata": {**wanted.get("metadata", {}), "resourceVersion": version}}

        return await self._until_done(_patch(target, PatchType.MERGE), body)

    async def create(self, resource: ApiResource, namespace: str, obj: Object) -> Outcome:
        """Create an object. Its name must be unique: after a lost answer the request is sent again, and "already
        exists" counts as success."""
        target = Target(resource, ObjectRef(namespace, str(obj["metadata"]["name"])))
        write = _Write(
            "create", target, "POST", resource.path(namespace), "application/json", {"fieldManager": MANAGER}
        )
        return await self._until_done(write, lambda: _ready(obj))

    async def _until_done(self, write: _Write, body: Callable[[], Awaitable[Any]]) -> Outcome:
        outcome = await self._attempts(write, body)
        self.outcomes[outcome] += 1
        return outcome

    async def _attempts(self, write: _Write, body: Callable[[], Awaitable[Any]]) -> Outcome:
        key = (write.verb, write.target.noun, write.target.ref.namespace)
        began = self._clock()
        # RBAC refused this a short time ago: do not send the request again.
        if self._refusals.holds(key, began):
            return Outcome.FORBIDDEN
        attempt, content = 0, None
        while True:
            attempt += 1
            try:
                # After a retry without `reread` the same content is sent again.
                content = content or await body()
                if content is not None:
                    await self._send(write, content)
            except (AnswerError, *NETWORK_ERRORS) as error:
                verdict = retry.judge(_answer(error), attempt, self._clock() - began, self._spread())
                self._note(write, verdict, error)
                if isinstance(verdict, Outcome):
                    if verdict is Outcome.FORBIDDEN:
                        self._refusals.add(key, str(error), self._clock())
                    return verdict
                # After a conflict the content is based on an old version of the object.
                content = None if verdict.reread else content
            else:
                self._refusals.remove(key)
                return Outcome.DONE
            await self._sleep(verdict.seconds)

    async def _send(self, write: _Write, content: object) -> None:
        data = msgspec.json.encode(content)
        await self._session.send(write.method, write.path, data, write.content_type, write.params, self._write_seconds)

    def _note(self, write: _Write, verdict: Outcome | Retry, error: Exception) -> None:
        """Log a failed attempt. FORBIDDEN is logged by Refusals; GONE is a normal result."""
        text = str(error) or type(error).__name__
        if isinstance(verdict, Retry):
            log.debug("%s %s: %s; trying again in %.1f s", write.verb, write.target, text, verdict.seconds)
        elif verdict in (Outcome.REJECTED, Outcome.GAVE_UP):
            log.warning("%s %s: %s: %s", write.verb, write.target, verdict, text)


def _patch(target: Target, kind: PatchType) -> _Write:
    params = {"fieldManager": MANAGER} | ({"force": "true"} if kind is PatchType.APPLY else {})
    return _Write("patch", target, "PATCH", target.path, kind, params)


async def _ready(content: object) -> object:
    return content


def _answer(error: Exception) -> Answer:
    if isinstance(error, AnswerError):
        return Answer(error.code, error.after, error.reason, error.causes)
    return Answer(0)
