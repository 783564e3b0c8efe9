"""The service observer.Observer, which the hubble CLI, relay and UI call on each node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from nodenet.flow.filter import FilterError
from nodenet.flow.matcher import compile_filters
from nodenet.flow.ring import Query
from nodenet.flow.types import Flow, Lost
from nodenet.rpc import convert
from nodenet.rpc import mask as masks
from nodenet.rpc.call_limits import CallLimit
from nodenet.rpc.feed import Feed
from nodenet.rpc.pb.observer import observer_pb2
from nodenet.rpc.pb.relay import relay_pb2

VERSION_HEADER = "hubble-server-version"
_RATE_WINDOW = 60 * 1_000_000_000
# The largest number of concurrent GetFlows calls; separate limits for the unix socket and for TCP.
MAX_STREAMS = 64


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Facts about the server. `clock` returns ns since the epoch; `started` is the time of the start."""

    version: str
    address: str = ""
    started: int = 0
    clock: Callable[[], int] = time.time_ns

    @property
    def uptime(self) -> int:
        """ns since the start."""
        return max(0, self.clock() - self.started)


class Observer:
    """One method per call of the service. grpc.aio passes (request, context)."""

    def __init__(self, feed: Feed, info: ServerInfo) -> None:
        self._feed = feed
        self._info = info
        self._streams = CallLimit("GetFlows", MAX_STREAMS, MAX_STREAMS)

    async def GetFlows(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Flows, oldest first. Fails with INVALID_ARGUMENT naming the field if a filter is invalid or over a limit
        (flow/limits.py)."""
        await self._streams.acquire(context)
        await self._send_version(context)
        origin = self._feed.origin
        try:
            query = self._query(request)
            mask = masks.parse(request.field_mask.paths or request.experimental.field_mask.paths)
        except FilterError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        async for batch in self._feed.flows(query, self._deadline(query)):
            for item in batch:
                if isinstance(item, Lost):
                    yield convert.lost_response(item, origin)
                else:
                    yield convert.response(item, origin, mask)

    async def GetAgentEvents(self, _request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Not supported: changes of the agent are in its metrics and its log."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "this agent records no agent events; see its metrics and log"
        )
        yield  # makes this a stream

    async def GetDebugEvents(self, _request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Not supported: the datapath has no debug messages. Raw events are available from nodenet.v1.Agent/Monitor."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this datapath sends no debug events; see nodenet monitor")
        yield  # makes this a stream

    async def GetNodes(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """Only this node: a relay collects the others."""
        await self._send_version(context)
        ring = self._feed.ring
        node = observer_pb2.Node(
            name=self._feed.origin.full_node_name,
            version=self._info.version,
            address=self._info.address,
            state=relay_pb2.NODE_CONNECTED,
            uptime_ns=self._info.uptime,
            num_flows=len(ring),
            max_flows=ring.capacity,
            seen_flows=ring.seen,
        )
        node.tls.enabled = False
        return observer_pb2.GetNodesResponse(nodes=[node])

    async def GetNamespaces(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """The namespaces of the flows in the ring."""
        await self._send_version(context)
        found: set[str] = set()
        async for batch in self._feed.flows(Query()):
            for item in batch:
                if isinstance(item, Flow):
                    found.update((item.source.namespace, item.destination.namespace))
        cluster = self._feed.origin.cluster_name
        namespaces = [observer_pb2.Namespace(cluster=cluster, namespace=name) for name in sorted(found - {""})]
        return observer_pb2.GetNamespacesResponse(namespaces=namespaces)

    async def ServerStatus(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """Number of flows in the ring, number of flows seen, and flows per second."""
        await self._send_version(context)
        ring = self._feed.ring
        status = observer_pb2.ServerStatusResponse(
            num_flows=len(ring),
            max_flows=ring.capacity,
            seen_flows=ring.seen,
            uptime_ns=self._info.uptime,
            version=self._info.version,
            flows_rate=self._rate(),
        )
        status.num_connected_nodes.value = 1
        status.num_unavailable_nodes.value = 0
        return status

    async def _send_version(self, context: Any) -> None:
        await context.send_initial_metadata(((VERSION_HEADER, self._info.version),))

    def _query(self, request: Any) -> Query:
        matcher = compile_filters(
            convert.filters(request.whitelist, "whitelist"),
            convert.filters(request.blacklist, "blacklist"),
            self._feed.origin,
        )
        return Query(
            # Hubble's clients ask for 2^64 - 1 flows when they want all.
            number=min(request.number, self._feed.ring.capacity),
            first=request.first,
            follow=request.follow,
            since=_nanoseconds(request, "since"),
            until=_nanoseconds(request, "until"),
            matches=matcher,
            steps=matcher.steps if matcher is not None else 1,
        )

    def _deadline(self, query: Query) -> float | None:
        """The end of a query with `follow` and `until`, in loop time. None: no end."""
        if not query.follow or query.until is None:
            return None
        return asyncio.get_running_loop().time() + max(0, query.until - self._info.clock()) / 1e9

    def _rate(self) -> float:
        """Flows per second over the last minute, or since the start if that is less."""
        now = self._info.clock()
        window = min(_RATE_WINDOW, max(1, self._info.uptime))
        count = 0
        for _, item in self._feed.ring.newest_first():
            if isinstance(item, Flow):
                if item.time < now - window:
                    break
                count += 1
        return count * 1e9 / window


def _nanoseconds(request: Any, name: str) -> int | None:
    if not request.HasField(name):
        return None
    stamp = getattr(request, name)
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)
