"""The HTTP servers for Prometheus and for the probes of the kubelet.

/metrics           Prometheus
/livez, /healthz   200 while the process answers: a restart would not bring an API server back
/readyz            200 from the first synchronisation on; until then 503, with what is missing
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from nodenet.errors import CannotRunError
from nodenet.metrics import Source

# A connection without a request is closed after this time.
IDLE_SECONDS = 15.0


def health_routes(source: Source) -> list[web.RouteDef]:
    """The probes."""

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        missing = source.missing()
        if not missing:
            return web.Response(text="ok\n")
        return web.Response(text="".join(f"{sentence}\n" for sentence in missing), status=503)

    return [web.get("/livez", livez), web.get("/healthz", livez), web.get("/readyz", readyz)]


def metrics_routes(text: Callable[[], bytes]) -> list[web.RouteDef]:
    """Prometheus. `text` is called in a worker thread."""
    reading: asyncio.Task[bytes] | None = None

    async def show(_request: web.Request) -> web.Response:
        # A scrape is expensive, because it counts the entries of every map: concurrent scrapes share one answer.
        nonlocal reading
        if reading is None or reading.done():
            reading = asyncio.create_task(asyncio.to_thread(text))
        body = await asyncio.shield(reading)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [web.get("/metrics", show)]


class HttpServer:
    """Serves `routes` on one address until it is stopped. `key`: the configuration key of the address, for errors."""

    def __init__(self, key: str, routes: Iterable[web.RouteDef]) -> None:
        self._key = key
        app = web.Application()
        app.add_routes(routes)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_SECONDS)

    async def start(self, address: str) -> int:
        """Listen on host:port (port 0: any free one). Returns the port. Raises CannotRunError if this is not
        possible."""
        host, _, port = address.rpartition(":")
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise CannotRunError(
                f"{self._key} {address}: {error.strerror or error}", "set another address, or an empty one for none"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the listening socket and all connections."""
        await self._runner.cleanup()
