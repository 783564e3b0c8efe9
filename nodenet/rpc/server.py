"""The agent's gRPC server, on a unix socket and, if configured, on TCP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc

from nodenet.errors import CannotRunError
from nodenet.flow.limits import MAX_REQUEST_BYTES
from nodenet.rpc import schema
from nodenet.rpc.feed import Feed
from nodenet.rpc.observer import Observer, ServerInfo
from nodenet.rpc.pb.nodenet import agent_pb2, health_pb2
from nodenet.rpc.pb.observer import observer_pb2
from nodenet.rpc.pb.peer import peer_pb2
from nodenet.rpc.pb.reflection import reflection_pb2
from nodenet.rpc.peer import Peer, PeerSource
from nodenet.rpc.reflection import NAMES, Reflection
from nodenet.rpc.service import Agent, Health, Provider

_GRACE_SECONDS = 1.0
# struct sockaddr_un has 108 bytes, including the terminating zero.
_LONGEST_SOCKET_PATH = 107
# The largest number of concurrent calls in total, more than the limits per kind (call_limits.py) allow together. One
# connection may have 128.
_MAX_CALLS = 512
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_concurrent_streams", 128),
)


class Server:
    """observer.Observer, peer.Peer, grpc.health.v1.Health, nodenet.v1.Agent and reflection on one socket."""

    def __init__(self, feed: Feed, provider: Provider, info: ServerInfo, peers: PeerSource) -> None:
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
        served = [
            (observer_pb2.DESCRIPTOR.services_by_name["Observer"], Observer(feed, info)),
            (peer_pb2.DESCRIPTOR.services_by_name["Peer"], Peer(peers)),
            (health_pb2.DESCRIPTOR.services_by_name["Health"], Health(provider)),
            (agent_pb2.DESCRIPTOR.services_by_name["Agent"], Agent(feed, provider)),
        ]
        reflection = Reflection(service.full_name for service, _ in served)
        own = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
        self._server.add_generic_rpc_handlers(
            (
                *(schema.handler(service, servicer) for service, servicer in served),
                *(schema.handler(own, reflection, name) for name in NAMES),
            )
        )
        self._path: Path | None = None

    async def start(self, path: Path, address: str = "") -> int:
        """Listen on the unix socket (only root may open it) and on `host:port`. Returns the TCP port, or 0 without one.

        The socket of a killed agent is replaced. Raises CannotRunError if a running agent uses it.
        """
        if len(str(path)) > _LONGEST_SOCKET_PATH:
            raise CannotRunError(
                f"{path}: longer than the {_LONGEST_SOCKET_PATH} bytes that a unix socket's path may have",
                "choose a shorter run_dir",
            )
        await asyncio.to_thread(_take_over, path)
        try:
            port = self._listen(path, address)
        except RuntimeError as error:
            raise CannotRunError(f"cannot listen on {address or path}: {error}", "is the address in use?") from error
        await self._server.start()
        self._path = path
        return port

    async def stop(self) -> None:
        """Stop the server: open streams end after a grace period. Then remove the socket."""
        await self._server.stop(_GRACE_SECONDS)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _listen(self, path: Path, address: str) -> int:
        self._server.add_insecure_port(f"unix:{path}")
        # Only root may connect: the socket gives access to all flows.
        path.chmod(0o600)
        return self._server.add_insecure_port(address) if address else 0


def _take_over(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            # Only a running agent accepts connections on its socket.
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise CannotRunError(f"{path}: another agent listens here", "stop it first, or give this one another run_dir")
