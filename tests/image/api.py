"""An API server for the agent in a container: TLS, a service account, and the rights of a ClusterRole and no others."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from nodenet.lab.apiserver.access import Access, User
from nodenet.lab.apiserver.server import ApiServer
from nodenet.link import netns

Obj = dict[str, Any]
TOKEN = "service-account-token"
ADDRESS = "127.0.0.1"
PORT = 6443
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def make_certificate(folder: Path) -> None:
    """A self-signed certificate: tls.crt, tls.key."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=api", "-addext", f"subjectAltName=IP:{ADDRESS}"]
    words += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(words, check=True, capture_output=True)


@dataclass
class Api:
    """The running server. `used`: (verb, group, resource) of every request that was allowed; `refused`: the others."""

    server: ApiServer
    loop: asyncio.AbstractEventLoop
    used: set[tuple[str, str, str]] = field(default_factory=set)
    refused: set[tuple[str, str, str]] = field(default_factory=set)

    def create(self, body: Obj) -> Obj:
        """Create an object. Returns it with what the server adds."""
        return asyncio.run_coroutine_threadsafe(self.server.client.create(body), self.loop).result(10)

    def get(self, kind: str, name: str) -> Obj:
        return asyncio.run_coroutine_threadsafe(self.server.client.get(kind, name), self.loop).result(10)


def verb(request: web.Request, named: bool) -> str:
    """The RBAC verb of a request."""
    if request.method == "GET":
        return "watch" if request.query.get("watch") in ("1", "true") else "get" if named else "list"
    return _VERBS[request.method]


def authorise(api: Api, rules: Sequence[Obj]) -> Any:
    """A middleware that lets through what the rules of a ClusterRole allow, as the RBAC authoriser does."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        match = request.match_info
        if "tail" not in match or "version" not in match:
            return await handler(request)  # type: ignore[no-any-return]
        parts = match["tail"].split("/")
        if parts[0] == "namespaces" and len(parts) > 2:
            parts = parts[2:]
        resource = "/".join((parts[0], *parts[2:3]))
        asked = (verb(request, len(parts) > 1), match.get("group", ""), resource)
        allowed = any(
            asked[0] in rule["verbs"] and asked[1] in rule["apiGroups"] and resource in rule["resources"]
            for rule in rules
        )
        (api.used if allowed else api.refused).add(asked)
        if not allowed:
            raise web.HTTPForbidden(text=f"{asked} is not in the ClusterRole")
        return await handler(request)  # type: ignore[no-any-return]

    return check


@contextmanager
def serving(namespace: str, folder: Path, rules: Sequence[Obj]) -> Iterator[Api]:
    """Serve in a thread inside the network namespace. `folder` has the certificate."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Api] = []

    async def serve() -> None:
        server = ApiServer(access=Access({TOKEN: User("system:serviceaccount:nodenet:nodenet")}))
        api = Api(server, asyncio.get_running_loop())
        app = server.app()
        app.middlewares.append(authorise(api, rules))
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        await web.TCPSite(runner, ADDRESS, PORT, ssl_context=context).start()
        found.append(api)
        ready.set()
        await asyncio.to_thread(stop.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: netns.call(namespace, asyncio.run, serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        stop.set()
        thread.join(20)
