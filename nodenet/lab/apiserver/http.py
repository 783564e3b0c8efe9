"""The API endpoint over HTTP (aiohttp): translates requests to the registry's verbs, and results to answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from nodenet.lab.apiserver import discovery, http_answers, patch, scale, status
from nodenet.lab.apiserver import http_requests as requests
from nodenet.lab.apiserver.access import OPEN_PATHS, Access
from nodenet.lab.apiserver.registry import Options, Patch, PatchType, Registry
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.apiserver.watch import WatchOptions, listing, watch
from nodenet.lab.apiserver.watches import Watches

Obj = dict[str, Any]
_log = logging.getLogger(__name__)
# The API server's limit for a body. (etcd's limit for an object is 1.5 MiB.)
MAX_BODY = 3 * 1024 * 1024
# Far more than the agents of the largest lab need: 200 nodes with six kinds each.
MAX_WATCHES = 4096
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Called with the client's address first of all. Raises the ApiError that this client must get, if any.
Refuse = Callable[[str], None]


class Api:
    """The handlers. `bookmark_seconds`: how often a quiet watch that allows bookmarks gets one."""

    def __init__(
        self,
        registry: Registry,
        clock: Callable[[], float],
        bookmark_seconds: float,
        access: Access,
        watches: Watches,
        refuse: Refuse,
    ) -> None:
        self._registry = registry
        self._access = access
        self._clock = clock
        self._bookmark_seconds = bookmark_seconds
        self._watches = watches
        self._refuse = refuse

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_errors, self._authenticate], client_max_size=MAX_BODY)
        for path in OPEN_PATHS:
            app.router.add_get(path, _healthy)
        app.router.add_get("/version", _fixed(discovery.version))
        app.router.add_get("/api", _fixed(discovery.core_versions))
        app.router.add_get("/apis", _fixed(partial(discovery.groups, self._registry.catalog)))
        app.router.add_get("/openapi/v2", _openapi_v2)
        app.router.add_get("/openapi/v3", _fixed(partial(discovery.openapi_paths, self._registry.catalog)))
        app.router.add_get("/openapi/v3/api/{version}", self._openapi)
        app.router.add_get("/openapi/v3/apis/{group}/{version}", self._openapi)
        app.router.add_get("/apis/{group}", self._group)
        app.router.add_get("/api/{version}", self._resources)
        app.router.add_get("/apis/{group}/{version}", self._resources)
        app.router.add_route("*", "/api/{version}/{tail:.+}", self._object)
        app.router.add_route("*", "/apis/{group}/{version}/{tail:.+}", self._object)
        app.router.add_route("*", "/{tail:.*}", _nothing)
        app.on_shutdown.append(self._stop_watches)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: authenticate and authorize before the body is read."""
        self._refuse(client_address(request))
        if request.path in OPEN_PATHS:
            return await handler(request)
        user = self._access.user(request)
        match = request.match_info
        target = (
            requests.parse_path(self._registry.catalog, match.get("group", ""), match["version"], match["tail"])
            if "version" in match and "tail" in match
            else None
        )
        user.require(request.method, target.resource if target else None)
        return await handler(request)

    async def _stop_watches(self, _app: web.Application) -> None:
        self._watches.stop()

    async def _group(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["group"] not in self._registry.catalog.groups():
            return await _nothing(request)
        return _json(discovery.group(self._registry.catalog, request.match_info["group"]))

    async def _resources(self, request: web.Request) -> web.StreamResponse:
        found = discovery.resources(
            self._registry.catalog, request.match_info.get("group", ""), request.match_info["version"]
        )
        return _json(found) if found["resources"] else await _nothing(request)

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        found = discovery.openapi(
            self._registry.catalog, request.match_info.get("group", ""), request.match_info["version"]
        )
        return _json(found) if found["paths"] else await _nothing(request)

    async def _object(self, request: web.Request) -> web.StreamResponse:
        match = request.match_info
        target = requests.parse_path(self._registry.catalog, match.get("group", ""), match["version"], match["tail"])
        handlers: dict[str, Callable[[web.Request, requests.Target], Awaitable[web.StreamResponse]]] = {
            "GET": self._get if target.name else self._list,
            "POST": self._post,
            "PUT": self._put,
            "PATCH": self._patch,
            "DELETE": self._delete if target.name else self._delete_collection,
        }
        handler = handlers.get(request.method)
        needs_name = request.method in ("PUT", "PATCH")
        if handler is None or (needs_name and not target.name):
            raise status.method_not_allowed(request.method, target.resource)
        return await handler(request, target)

    async def _get(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, target)
        stored = self._registry.get(target.resource, target.namespace, target.name)
        if target.subresource == "scale":
            return _json(scale.of(stored.decode()))
        include = requests.table_rows(request)
        if include is not None:
            metadata = {"resourceVersion": str(stored.version)}
            return _json(http_answers.table(target.resource.key, [stored], metadata, include, self._clock()))
        return _raw(stored.raw)

    async def _list(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, target)
        at = requests.version(request) if request.query.get("resourceVersionMatch") == "Exact" else None
        limit = requests.number(request, "limit") or 0
        found = listing(
            self._registry.storage, requests.query_of(request, target), limit, request.query.get("continue", ""), at
        )
        include = requests.table_rows(request)
        if include is None:
            return _raw(http_answers.page(target.resource, found))
        metadata: Obj = {"resourceVersion": str(found.version)}
        if found.token:
            metadata |= {"continue": found.token, "remainingItemCount": found.remaining}
        return _json(http_answers.table(target.resource.key, found.items, metadata, include, self._clock()))

    async def _watch(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        initial = request.query.get("sendInitialEvents")
        options = WatchOptions(
            version=requests.version(request),
            timeout=requests.number(request, "timeoutSeconds"),
            bookmark_seconds=self._bookmark_seconds if bookmarks else None,
            initial_events=None if initial is None else initial in ("1", "true"),
        )
        query = requests.query_of(request, target)
        query.matcher()  # an invalid selector must be answered with 400 before the stream starts
        if len(self._watches) >= MAX_WATCHES:
            raise ApiError(429, "TooManyRequests", f"{MAX_WATCHES} watches are open, which is the limit")
        include = requests.table_rows(request)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            with self._watches.opened(client_address(request)):
                async for event in watch(self._registry.storage, query, options):
                    await response.write(http_answers.watch_line(target.resource, event, include, self._clock()))
        except ApiError as error:
            await response.write(http_answers.error_line(error.to_status()))
        except ConnectionResetError:
            _log.debug("a watcher closed its connection")
            return response
        await response.write_eof()
        return response

    async def _post(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        body = await requests.body_of(request, target.resource)
        if target.subresource == "binding":
            self._registry.bind(target.namespace, target.name, str((body.get("target") or {}).get("name") or ""))
            done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return _json({**done, "code": 201}, 201)
        if target.name:
            raise status.method_not_allowed("POST", target.resource)
        warnings: list[str] = []
        requests.check_kind(body, target)
        stored = self._registry.create(body, target.namespace, requests.write_options(request, warnings))
        return _raw(stored.raw, 201, warnings)

    async def _put(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        body = await requests.body_of(request, target.resource)
        warnings: list[str] = []
        options = requests.write_options(request, warnings)
        if target.subresource == "scale":
            return self._scale(target, body, options)
        requests.check_kind(body, target)
        stored = self._registry.update(body, target.namespace, target.name, target.subresource, options)
        return _raw(stored.raw, 200, warnings)

    async def _patch(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        try:
            kind = PatchType(request.content_type)
        except ValueError as error:
            known = ", ".join(PatchType)
            message = f"the body of the request was in an unknown format: {request.content_type} (known: {known})"
            raise ApiError(415, "UnsupportedMediaType", message) from error
        body = await requests.body_of(request, target.resource, lists=True)
        warnings: list[str] = []
        options = requests.write_options(request, warnings)
        if target.subresource == "scale":
            current = scale.of(self._registry.get(target.resource, target.namespace, target.name).decode())
            wanted = patch.json_patch(current, body) if kind is PatchType.JSON else patch.merge(current, body)
            return self._scale(target, wanted, options)
        if kind is PatchType.APPLY:
            requests.check_kind(body, target)
        where = (target.resource, target.namespace, target.name)
        stored = self._registry.patch(*where, Patch(kind, body), target.subresource, options)
        return _raw(stored.raw, 200, warnings)

    def _scale(self, target: requests.Target, wanted: Obj, options: Options) -> web.StreamResponse:
        current = self._registry.get(target.resource, target.namespace, target.name).decode()
        changed = scale.into(current, wanted, target.resource)
        stored = self._registry.update(changed, target.namespace, target.name, options=options)
        return _json(scale.of(stored.decode()))

    async def _delete(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        if target.subresource:
            raise status.method_not_allowed("DELETE", target.resource)
        options = requests.delete_options(request, await requests.body_of(request, target.resource, empty=True))
        stored, gone = self._registry.delete(target.resource, target.namespace, target.name, options)
        return _json(http_answers.success(target.resource, stored)) if gone else _raw(stored.raw)

    async def _delete_collection(self, request: web.Request, target: requests.Target) -> web.StreamResponse:
        options = requests.delete_options(request, await requests.body_of(request, target.resource, empty=True))
        found = listing(self._registry.storage, requests.query_of(request, target))
        for stored in found.items:
            self._registry.delete(target.resource, *stored.ref, options)
        return _raw(http_answers.page(target.resource, found))


def client_address(request: web.Request) -> str:
    """The client's IP address; "" if the connection is closed."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else ""


def _fixed(make: Callable[[], Obj]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return _json(make())

    return answer


async def _healthy(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def _nothing(request: web.Request) -> web.StreamResponse:
    raise ApiError(404, "NotFound", f"the lab serves no such path: {request.path}")


async def _openapi_v2(_request: web.Request) -> web.StreamResponse:
    """kubectl asks here, in protobuf, for kinds that are not in v3. An empty message means that they are not here
    either."""
    return web.Response(body=b"", content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json(error.to_status(), error.code)
    except web.HTTPRequestEntityTooLarge as error:
        message = f"Request entity too large: limit is {MAX_BODY} bytes"
        return _json(ApiError(error.status, "RequestEntityTooLarge", message).to_status(), error.status)
    except web.HTTPException as error:
        return _json(ApiError(error.status, error.reason, str(error.reason)).to_status(), error.status)
    except Exception as error:  # noqa: BLE001 - an edge: log any error and answer with 500
        _log.exception("%s %s", request.method, request.path_qs)
        return _json(ApiError(500, "InternalError", f"Internal error occurred: {error!r}").to_status(), 500)


def _raw(body: bytes, code: int = 200, warnings: list[str] | None = None) -> web.Response:
    response = web.Response(body=body, status=code, content_type="application/json")
    for warning in warnings or ():
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


def _json(body: Obj, code: int = 200) -> web.Response:
    return _raw(http_answers.dumps(body), code)
