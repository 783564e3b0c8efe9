"""The client of the agent's gRPC server, for the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import msgspec

from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.rpc import schema
from nodenet.rpc.pb.nodenet import agent_pb2, health_pb2
from nodenet.rpc.pb.observer import observer_pb2
from nodenet.rpc.service import OBSERVER_SERVICE

# Timeout of calls without a stream, as in the hubble CLI.
UNARY_SECONDS = 12.0
_OBSERVER = observer_pb2.DESCRIPTOR.services_by_name["Observer"]
_AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]


class Client:
    """A connection to one agent. `target` is a path, unix:path, unix:///path or host:port. Use it with `async with`.

    Calls raise CannotRunError if the connection is refused or times out, BadInputError if the agent rejects the
    request.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._path = socket_path(target)
        address = f"unix:{self._path}" if self._path is not None else target
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def get_flows(self, request: Any) -> AsyncGenerator[Any, None]:
        """Call GetFlows. Yields GetFlowsResponse messages."""
        return self._stream(_OBSERVER, "GetFlows", request)

    async def nodes(self) -> Any:
        """observer.GetNodesResponse."""
        return await self._unary(_OBSERVER, "GetNodes", observer_pb2.GetNodesRequest())

    async def namespaces(self) -> Any:
        """observer.GetNamespacesResponse."""
        return await self._unary(_OBSERVER, "GetNamespaces", observer_pb2.GetNamespacesRequest())

    async def serving(self, service: str = OBSERVER_SERVICE) -> bool:
        """Whether the health check returns SERVING."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self._unary(_HEALTH, "Check", request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def status(self) -> dict[str, Any]:
        """The agent's status."""
        answer = await self._unary(_AGENT, "Status", agent_pb2.StatusRequest())
        return msgspec.json.decode(answer.json, type=dict[str, Any])

    async def rows(
        self, resource: str, limit: int = 0, name: str = "", key: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """The rows of one resource (service.RESOURCES); at most `limit`, 0: all. `name`: only those of one object or
        map. `key`: only the entry of this key."""
        found: list[dict[str, Any]] = []
        request = agent_pb2.ListRequest(resource=resource, limit=limit, name=name, key=key)
        async for chunk in self._stream(_AGENT, "List", request):
            found.extend(msgspec.json.decode(row, type=dict[str, Any]) for row in chunk.rows)
        return found

    async def explain(self, source: str, destination: str, port: int, protocol: str = "TCP") -> dict[str, Any]:
        """The policy verdict for one connection, as the agent computes it."""
        request = agent_pb2.ExplainRequest(to=destination, port=port, protocol=protocol, **{"from": source})
        answer = await self._unary(_AGENT, "Explain", request)
        return msgspec.json.decode(answer.json, type=dict[str, Any])

    def monitor(self, number: int = 0, follow: bool = False) -> AsyncGenerator[Any, None]:
        """Call Monitor. Yields MonitorResponse messages."""
        return self._stream(_AGENT, "Monitor", agent_pb2.MonitorRequest(number=number, follow=follow))

    async def _unary(self, service: Any, name: str, request: Any) -> Any:
        try:
            return await schema.call(self._channel, service, name)(request, timeout=UNARY_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from error

    async def _stream(self, service: Any, name: str, request: Any) -> AsyncGenerator[Any, None]:
        call = schema.call(self._channel, service, name)(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from error
        finally:
            # If the caller stops early, the server must be notified: it limits the number of open streams.
            call.cancel()

    def _to_error(self, error: grpc.aio.AioRpcError) -> NodenetError:
        code = error.code()
        details, _, hint = (error.details() or code.name).partition("\n")
        if code is grpc.StatusCode.UNAVAILABLE:
            return unreachable(self.target, self._path)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CannotRunError(f"the agent at {self.target} did not answer within {UNARY_SECONDS:g} s")
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return BadInputError(details, hint)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CannotRunError(f"the server at {self.target} cannot do this: {details}", hint)
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return CannotRunError(f"{self.target}: {details}", hint)
        return NodenetError(f"{self.target}: {details}", hint)


def socket_path(target: str) -> Path | None:
    """The path of a unix socket, or None for host:port. Raises BadInputError if the target is neither."""
    if target.startswith("unix:"):
        # unix:///path is absolute; unix:path is relative to the working directory, as in gRPC.
        return Path("/" + target.removeprefix("unix:").lstrip("/") if "//" in target else target.removeprefix("unix:"))
    if "/" in target:
        return Path(target)
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInputError(f"server {target!r}: expected a socket's path, unix:///path or host:port")
    return None


def unreachable(target: str, path: Path | None) -> CannotRunError:
    """The error for an agent that cannot be reached. It says whether the socket exists."""
    if path is None:
        return CannotRunError(
            f"no agent answers at {target}", "is the agent running, and is its hubble_address set to this?"
        )
    if not path.exists():
        return CannotRunError(
            f"no agent: there is no socket {path}",
            "start one (nodenet agent --config FILE, or nodenet lab up), or name its socket with --socket or --lab",
        )
    return CannotRunError(
        f"no agent answers on {path}", "the socket may be left over from a killed agent, or you may lack permission"
    )
