"""Runs a command in a container, through the API server's `exec` over a WebSocket.

The protocol is channel.k8s.io: https://kubernetes.io/docs/reference/using-api/api-concepts/ and
k8s.io/apimachinery/pkg/util/remotecommand. The first byte of each message is the number of its stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from nodenet.cluster.client import PODS, Cluster
from nodenet.errors import CannotRunError

# v5 adds the end of the standard input, which is not used here: servers before 1.30 have v4 only.
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT, _STDERR, _ERROR = 1, 2, 3
# The largest number of bytes that a command may write.
MOST_OUTPUT = 64 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A container of a pod. An empty `container`: the pod's only one."""

    namespace: str
    pod: str
    container: str = ""

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command wrote, and its exit status."""

    status: int
    stdout: bytes
    stderr: bytes


async def execute(cluster: Cluster, place: Place, command: Sequence[str], seconds: float = 30.0) -> Ran:
    """Run a command and wait for its end. Raises CannotRunError if it cannot start, does not end in time, or writes
    more than MOST_OUTPUT, and RefusedError if the API refuses."""
    params = [("command", word) for word in command]
    params += [("stdout", "true"), ("stderr", "true")]
    params += [("container", place.container)] if place.container else []
    path = PODS.path(place.namespace, place.pod, "exec")
    what = f"{place}: exec {command[0]}"
    try:
        async with (
            asyncio.timeout(seconds),
            cluster.explained(what),
            cluster.session.websocket(path, params, _PROTOCOLS) as socket,
        ):
            return await _read(socket, what)
    except TimeoutError as error:
        raise CannotRunError(f"{what}: not complete after {seconds:g} s") from error


async def _read(socket: aiohttp.ClientWebSocketResponse, what: str) -> Ran:
    streams = {_STDOUT: bytearray(), _STDERR: bytearray(), _ERROR: bytearray()}
    size = 0
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        size += len(message.data)
        if size > MOST_OUTPUT:
            raise CannotRunError(f"{what}: it wrote more than {MOST_OUTPUT >> 20} MiB")
        if message.data[0] in streams:
            streams[message.data[0]] += message.data[1:]
    if not streams[_ERROR]:
        raise CannotRunError(f"{what}: the connection ended before the command did")
    return Ran(_status(bytes(streams[_ERROR]), what), bytes(streams[_STDOUT]), bytes(streams[_STDERR]))


def _status(data: bytes, what: str) -> int:
    """The exit status in the Status object that ends an exec. Raises CannotRunError if the command did not start."""
    try:
        status = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CannotRunError(f"{what}: the API sent no readable status: {data[:200]!r}") from error
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode" and str(cause.get("message")).isdigit():
            return int(cause["message"])
    raise CannotRunError(f"{what}: {status.get('message') or status.get('reason') or 'failed'}")
