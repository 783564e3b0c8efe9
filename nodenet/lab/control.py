"""The daemon's control socket, for requests that do not concern API objects. HTTP on a unix socket that only its owner
may open."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from nodenet.errors import BadInputError, NodenetError

# Handles one request. Its return value goes into the answer.
Act = Callable[[Mapping[str, Any]], Awaitable[object]]


@asynccontextmanager
async def serve(path: Path, describe: Callable[[], Mapping[str, Any]], acts: Mapping[str, Act]) -> AsyncIterator[None]:
    """Serve the control socket. GET /status returns `describe()`. POST /act/NAME calls acts[NAME] with the JSON body
    and returns {"result": ...}."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(describe())

    async def act(request: web.Request) -> web.Response:
        try:
            wanted = acts.get(request.match_info["name"])
            if wanted is None:
                raise BadInputError(f"{request.match_info['name']}: unknown (known: {', '.join(acts)})")
            return web.json_response({"result": await wanted(await request.json())})
        except NodenetError as error:
            body = {"message": str(error), "hint": error.hint}
            return web.json_response(body, status=422 if isinstance(error, BadInputError) else 500)

    app = web.Application()
    app.add_routes([web.get("/status", status), web.post("/act/{name}", act)])
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
