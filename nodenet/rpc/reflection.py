"""gRPC server reflection: `hubble reflect`, grpcurl and gRPC UIs ask which services there are, and how to call them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from nodenet.flow.limits import shown
from nodenet.rpc import schema
from nodenet.rpc.call_limits import CallLimit
from nodenet.rpc.pb.reflection import reflection_pb2

# Clients try the first name and then the second one. The messages are the same.
NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_STREAMS = (16, 8)
_LONGEST_NAME = 1024
_NOT_FOUND = int(grpc.StatusCode.NOT_FOUND.value[0])


class Reflection:
    """`services`: the full names of all services of the server."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, *NAMES})
        self._streams = CallLimit("ServerReflectionInfo", *_STREAMS)

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """One answer for each request, until the client ends the stream."""
        await self._streams.acquire(context)
        async for request in requests:
            yield self._answer(request)

    def _answer(self, request: Any) -> Any:
        answer = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            for name in self._services:
                answer.list_services_response.service.add(name=name)
        elif kind in ("file_by_filename", "file_containing_symbol"):
            self._files(answer, kind, getattr(request, kind))
        else:
            # proto3 has no extensions.
            _refuse(answer, "extensions are not used here")
        return answer

    def _files(self, answer: Any, kind: str, name: str) -> None:
        try:
            if len(name) > _LONGEST_NAME:
                raise KeyError(name)
            find = schema.POOL.FindFileByName if kind == "file_by_filename" else schema.POOL.FindFileContainingSymbol
            files = with_dependencies(find(_served_as(name)))
        except KeyError:
            _refuse(answer, f"not found: {shown(name)}")
            return
        answer.file_descriptor_response.file_descriptor_proto.extend(file.serialized_pb for file in files)


def with_dependencies(file: Any) -> list[Any]:
    """The file, and all files that it needs: a client then asks once."""
    found: dict[str, Any] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one.name not in found:
            found[one.name] = one
            waiting.extend(one.dependencies)
    return list(found.values())


def _served_as(name: str) -> str:
    """The name under which a symbol is declared here."""
    return name.replace(".v1alpha.", ".v1.") if name.startswith("grpc.reflection.v1alpha.") else name


def _refuse(answer: Any, message: str) -> None:
    answer.error_response.error_code = _NOT_FOUND
    answer.error_response.error_message = message
