"""The services nodenet.v1.Agent and grpc.health.v1.Health, for the command line and for supervisors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import grpc
import msgspec

from nodenet.errors import NodenetError
from nodenet.flow.limits import shown
from nodenet.flow.ring import Query
from nodenet.flow.types import Lost
from nodenet.rpc import convert
from nodenet.rpc.call_limits import CallLimit, is_local
from nodenet.rpc.feed import Feed
from nodenet.rpc.pb.nodenet import agent_pb2, health_pb2

OBSERVER_SERVICE = "hubble.server.Observer"
RESOURCES = (
    "endpoint",
    "identity",
    "service",
    "service_view",
    "policy",
    "ipcache",
    "ct",
    "map",
    "map_dump",
    "map_get",
    "program",
)
_ROWS_PER_CHUNK = 500
# Limits of concurrent calls: (unix socket, TCP). Each call of the provider occupies one of the process's few threads.
# The service nodenet.v1.Agent is for the unix socket only.
_PROVIDER_CALLS = (32, 0)
_MONITORS = (16, 0)
_STREAMS = (16, 16)
# The largest number of characters of an error message: all metadata of a call together is limited to 8 KiB.
_ERROR_LENGTH = 2000
_WATCH_SECONDS = 1.0

Row = Mapping[str, Any]


class Provider(Protocol):
    """Implemented by the agent. The methods are called in a worker thread: they may block, and must only read.

    Values are JSON types, or addresses, networks, enums and named tuples, which are converted to strings or lists.
    """

    def status(self) -> Row:
        """One object. Clients interpret `healthy` (bool) and `node`; they show the other fields unchanged."""
        ...

    def rows(self, resource: str, name: str = "", key: Sequence[str] = ()) -> Iterable[Row]:
        """The rows of one of RESOURCES. `name`: only rows of this object, or of this map; `key`: only the entry of this
        key. Raises NodenetError for names and keys that are unknown."""
        ...

    def explain(self, source: str, destination: str, port: int, protocol: str) -> Row:
        """The policy verdict for one connection. Raises NodenetError for unknown names."""
        ...

    def healthy(self) -> bool:
        """Whether the agent works. It must be fast, because it is called in the event loop."""
        ...


class Agent:
    """nodenet.v1.Agent, on the unix socket only: a dump of a full map costs the agent a minute of CPU, and callers from
    the network are not authenticated."""

    def __init__(self, feed: Feed, provider: Provider) -> None:
        self._feed = feed
        self._provider = provider
        self._provider_calls = CallLimit("calls of the agent", *_PROVIDER_CALLS)
        self._monitors = CallLimit("Monitor", *_MONITORS)

    async def Status(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """The provider's status as JSON."""
        await _acquire(self._provider_calls, context)
        status = await _call_provider(context, self._provider.status)
        return agent_pb2.StatusResponse(json=encode(status))

    async def List(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Rows as JSON objects, _ROWS_PER_CHUNK per message. Rows are made while they are sent: a million
        rows at once would be 400 MB."""
        await _acquire(self._provider_calls, context)
        if request.resource not in RESOURCES:
            message = f"resource: unknown {shown(request.resource)} (known: {', '.join(RESOURCES)})"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        asked = request.resource, request.name, tuple(request.key)
        found = await _call_provider(context, self._provider.rows, *asked)
        rows = islice(found, request.limit or None)
        while chunk := await _call_provider(context, _next_chunk, rows):
            yield agent_pb2.ListResponse(rows=chunk)

    async def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The provider's explanation as JSON."""
        await _acquire(self._provider_calls, context)
        protocol = request.protocol or "TCP"
        found = await _call_provider(
            context, self._provider.explain, getattr(request, "from"), request.to, request.port, protocol
        )
        return agent_pb2.ExplainResponse(json=encode(found))

    async def Monitor(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Raw records, oldest first. Without `number` and `follow`: all records in the ring."""
        await _acquire(self._monitors, context)
        query = Query(number=request.number, follow=request.follow)
        async for batch in self._feed.records(query):
            answer = agent_pb2.MonitorResponse(clock_offset=self._feed.pipeline.clock_offset)
            for item in batch:
                if isinstance(item, Lost):
                    if answer.records:
                        yield answer
                    lost = agent_pb2.MonitorResponse(clock_offset=self._feed.pipeline.clock_offset)
                    convert.fill_lost(lost.lost, item)
                    yield lost
                    answer = agent_pb2.MonitorResponse(clock_offset=self._feed.pipeline.clock_offset)
                else:
                    answer.records.append(item)
            if answer.records:
                yield answer


class Health:
    """grpc.health.v1.Health for the whole server ("") and for the Observer under Hubble's name."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._watches = CallLimit("Watch", *_STREAMS)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status now. Fails with NOT_FOUND for an unknown service, as the health protocol demands."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {shown(request.service)} is not served here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The status now and after each change."""
        await self._watches.acquire(context)
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self, service: str) -> Any:
        known = health_pb2.HealthCheckResponse
        if service not in ("", OBSERVER_SERVICE):
            return known.SERVICE_UNKNOWN
        return known.SERVING if self._provider.healthy() else known.NOT_SERVING


def encode(value: object) -> bytes:
    """Encode as JSON. Other types are converted to strings."""
    return msgspec.json.encode(value, enc_hook=str)


def _next_chunk(rows: Iterator[Row]) -> list[bytes]:
    return [encode(row) for row in islice(rows, _ROWS_PER_CHUNK)]


async def _acquire(limit: CallLimit, context: Any) -> None:
    """Take a place of a call of nodenet.v1.Agent. Aborts calls from the network with PERMISSION_DENIED."""
    if not is_local(context):
        message = "nodenet.v1.Agent is served on the agent's unix socket only\nrun the command on the node"
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, message)
    await limit.acquire(context)


async def _call_provider(context: Any, function: Any, *arguments: Any) -> Any:
    """Call the provider in a thread. A NodenetError is sent to the client with its hint."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except NodenetError as error:
        text = f"{error}\n{error.hint}" if error.hint else str(error)
        code = grpc.StatusCode.INVALID_ARGUMENT if error.exit_code == 2 else grpc.StatusCode.FAILED_PRECONDITION
        await context.abort(code, text[:_ERROR_LENGTH])
        raise
