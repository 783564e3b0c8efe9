"""Puts the API endpoint together and serves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from nodenet.lab.apiserver.access import Access
from nodenet.lab.apiserver.addresses import NODE_PORTS, ServiceAddresses
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.http import Api, Refuse
from nodenet.lab.apiserver.registry import Registry
from nodenet.lab.apiserver.storage import Storage
from nodenet.lab.apiserver.watches import Watches
from nodenet.model import IPNetwork

SERVICE_CIDRS = ("10.96.0.0/16",)
# How many changes of a kind are kept for watchers. A watcher that is further behind gets 410 Gone.
HISTORY = 8192
# Kubernetes sends about one bookmark per minute. A lab sends more, because its agents run for a shorter time.
BOOKMARK_SECONDS = 10.0


class ApiServer:
    """The endpoint of one lab. `service_cidrs`: one network, or one of each family, the primary one first.

    `clock` returns UNIX seconds. `access` authorizes HTTP requests; without it every client may do everything.
    `history`: how many changes of each kind are kept for watchers. `refuse` is called with each client's address and
    may raise the ApiError that the client must get. Raises ValueError for an invalid CIDR.
    """

    def __init__(
        self,
        service_cidrs: Sequence[str | IPNetwork] = SERVICE_CIDRS,
        clock: Callable[[], float] = time.time,
        *,
        access: Access | None = None,
        node_ports: range = NODE_PORTS,
        history: int = HISTORY,
        bookmark_seconds: float = BOOKMARK_SECONDS,
        refuse: Refuse = lambda _host: None,
    ) -> None:
        # The first version depends on the clock. If a client of an earlier endpoint continues with this one, its
        # version is older than the first here. So it gets 410 and lists again, instead of continuing in another
        # history.
        self.storage = Storage(history, int(clock()) * 1000)
        self.registry = Registry(
            self.storage, ServiceAddresses([str(cidr) for cidr in service_cidrs], node_ports), clock
        )
        self.client = LocalClient(self.registry)
        self._clock = clock
        self._access = access or Access()
        self._bookmark_seconds = bookmark_seconds
        self._refuse = refuse
        self.watches = Watches()

    def app(self) -> web.Application:
        """A new application. Several may serve the same objects. Run it with handler_cancellation, as `serve` does."""
        pace = self._bookmark_seconds
        return Api(self.registry, self._clock, pace, self._access, self.watches, self._refuse).app()

    def compact(self) -> None:
        """Delete the history, as etcd's compaction does. A watch or list from an older version then gets 410."""
        for log in self.storage.logs.values():
            log.forget()


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `ports` are in the order of the requested addresses. `accept` makes the server's protocol for a
    connection that the caller has accepted itself."""

    urls: list[str]
    ports: list[int]
    accept: Callable[[], asyncio.Protocol]


@asynccontextmanager
async def serve(api: ApiServer, *, addresses: Sequence[tuple[str, int]] = ()) -> AsyncIterator[Server]:
    """Serve on pairs of host and port (port 0: any free one) as long as the block runs, then end the open watches.

    Raises OSError if an address cannot be bound.
    """
    runner = web.AppRunner(api.app(), handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        for host, port in addresses:
            await web.TCPSite(runner, host, port).start()
        names = [name[:2] for name in runner.addresses if isinstance(name, tuple)]
        urls = [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in names]
        assert runner.server is not None
        yield Server(urls, [port for _, port in names], runner.server)
    finally:
        await runner.cleanup()
