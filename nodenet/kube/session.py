"""HTTP requests to the API servers of one cluster, with common credentials and timeouts."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from nodenet.kube import protocol
from nodenet.kube.config import ClusterAccess
from nodenet.kube.pages import EndlessListError
from nodenet.kube.sockets import keepalive_socket

log = logging.getLogger(__name__)

REQUEST_SECONDS = 60.0
CONNECT_SECONDS = 10.0
# Bytes that are read of the body of an error answer.
_LONGEST_ERROR = 1 << 16
# Bytes of one message of a WebSocket. API servers send less than 64 KiB at once.
_LONGEST_MESSAGE = 1 << 22

# Errors of a request, of decoding its answer, or of the pages of a list.
NETWORK_ERRORS = (
    aiohttp.ClientError,
    TimeoutError,
    OSError,
    msgspec.DecodeError,
    RecursionError,
    EndlessListError,
)


class AnswerError(Exception):
    """The server answered with an error status or a Status object. `after`: Retry-After in seconds, 0 if absent.

    `reason` and `causes` are the API's reason codes: NotFound, AlreadyExists, NamespaceTerminating.
    """

    def __init__(
        self, code: int, message: str, after: float = 0.0, reason: str = "", causes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{code} {message}".rstrip())
        self.code = code
        self.after = after
        self.reason = reason
        self.causes = causes


class Session:
    """Use it as an async context manager. `connections`: the largest number of open connections, 0: no limit.

    All requests use one server until it does not answer, or answers with 5xx; the requests after that use the next one.
    """

    def __init__(self, access: ClusterAccess, connections: int = 0) -> None:
        self.access = access
        self._current = 0
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            ssl=self.access.ssl or True, limit=self._connections, socket_factory=keepalive_socket
        )
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        read_seconds: float = REQUEST_SECONDS,
        *,
        limits_body: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET. Raises AnswerError if the status is not 200. `read_seconds`: the longest time without data. Without
        `limits_body`: the longest time until a body with status 200 begins; the caller limits the rest."""
        sock_read = read_seconds if limits_body else None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=sock_read)
        with self._leave_on_failure() as server:
            async with AsyncExitStack() as stack:
                request = self._http().get(
                    server + path,
                    params=params,
                    headers=self._headers(),
                    server_hostname=self.access.server_name,
                    timeout=timeout,
                )
                async with asyncio.timeout(None if limits_body else read_seconds):
                    response = await stack.enter_async_context(request)
                    if response.status != 200:
                        raise await _answer_error(response)
                yield response

    async def send(
        self, method: str, path: str, body: bytes, content_type: str, params: Mapping[str, str], seconds: float
    ) -> bytes:
        """A write that takes at most `seconds`. Raises AnswerError if the status is not 2xx."""
        with self._leave_on_failure() as server:
            async with self._http().request(
                method,
                server + path,
                params=params,
                data=body,
                headers={**self._headers(), "Content-Type": content_type},
                server_hostname=self.access.server_name,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS),
            ) as response:
                if response.status >= 300:
                    raise await _answer_error(response)
                return await response.read()

    @asynccontextmanager
    async def websocket(
        self, path: str, params: Sequence[tuple[str, str]], protocols: Sequence[str]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket, for the API's streams such as exec. Raises AnswerError if the server does not open it."""
        with self._leave_on_failure() as server:
            try:
                async with self._http().ws_connect(
                    server + path,
                    params=params,
                    protocols=protocols,
                    # Streams have no content type: the API server answers 406 to application/json.
                    headers={**self._headers(), "Accept": "*/*"},
                    server_hostname=self.access.server_name,
                    max_msg_size=_LONGEST_MESSAGE,
                ) as socket:
                    yield socket
            except aiohttp.WSServerHandshakeError as error:
                # aiohttp does not read the body, which has the API's message.
                raise AnswerError(error.status, f"{path}: {error.message}") from error

    @property
    def server(self) -> str:
        """The server that the next request uses."""
        servers = self.access.servers
        return servers[self._current % len(servers)]

    @contextmanager
    def _leave_on_failure(self) -> Iterator[str]:
        """Yields the server for one request. The next request uses another one if this fails without an answer, or with
        a server error."""
        server = self.server
        try:
            yield server
        except AnswerError as error:
            if error.code >= 500:
                self._leave(server)
            raise
        except NETWORK_ERRORS as error:
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                self._read_authority()
            self._leave(server)
            raise

    def _leave(self, server: str) -> None:
        # Another request may have left this server already.
        if len(self.access.servers) > 1 and server == self.server:
            self._current += 1
            log.debug("%s does not answer: the next request goes to %s", server, self.server)

    def _read_authority(self) -> None:
        """The cluster's authority may have been replaced while we run."""
        try:
            self.access.read_authority()
        except (OSError, ssl.SSLError) as error:
            log.warning("%s: %s", self.access.authority, error)

    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None, "used outside of its `async with`"
        return self._session

    def _headers(self) -> dict[str, str]:
        token = self.access.bearer()
        return {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})


async def _answer_error(response: aiohttp.ClientResponse) -> AnswerError:
    body = await response.content.read(_LONGEST_ERROR)
    try:
        status = msgspec.json.decode(body, type=protocol.Status)
    except (msgspec.DecodeError, RecursionError):
        status = protocol.Status(message=response.reason)
    causes = tuple(cause.reason for cause in (status.details.causes if status.details else None) or () if cause.reason)
    # Kubernetes sends Retry-After in seconds; the date form of HTTP is ignored.
    after = response.headers.get("Retry-After", "")
    return AnswerError(
        response.status,
        status.message or status.reason or "",
        float(after) if after.isdigit() else 0.0,
        status.reason or "",
        causes,
    )
