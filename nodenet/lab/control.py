"""The daemon's control socket: what is not an object of the API. HTTP on a unix socket that only its owner may open."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from nodenet.errors import NodenetError

Act = Callable[[str, str], Awaitable[None]]


@asynccontextmanager
async def serve(path: Path, describe: Callable[[], Mapping[str, Any]], act: Act) -> AsyncIterator[None]:
    """GET /status tells `describe()`; POST /agents/NODE/VERB does `act(NODE, VERB)`."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(describe())

    async def agent(request: web.Request) -> web.Response:
        try:
            await act(request.match_info["node"], request.match_info["verb"])
        except NodenetError as error:
            return web.json_response({"message": str(error)}, status=422)
        return web.json_response(describe())

    app = web.Application()
    app.add_routes([web.get("/status", status), web.post("/agents/{node}/{verb}", agent)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    previous = os.umask(0o177)
    try:
        await web.UnixSite(runner, path).start()
    finally:
        os.umask(previous)
    try:
        yield
    finally:
        await runner.cleanup()
