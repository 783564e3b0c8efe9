"""A small synchronous client of a lab's API and control socket. The command line uses it because it imports quickly."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from nodenet.errors import CannotRunError, NodenetError
from nodenet.lab import files
from nodenet.lab.apiserver.catalog import defined
from nodenet.lab.apiserver.http_client import HttpObjects
from nodenet.lab.apiserver.resources import BY_KIND, Resource

Object = dict[str, Any]

# Seconds. A lab's API answers from memory.
_TIMEOUT = 30.0


class RequestError(NodenetError):
    """The API refused a request. `code` is the HTTP status; the message is that of the API."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = {400: 2, 422: 2, 403: 3}.get(code, 1)


class LabClient:
    """Requests to one running lab."""

    def __init__(self, lab: str) -> None:
        """Raises BadInputError if the lab does not exist and CannotRunError if its daemon does not run."""
        state = files.running(lab)
        self.lab = lab
        self.plan = state.plan
        self._port = state.port
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}

    def listing(self, resource: Resource, namespace: str = "") -> tuple[list[Object], str]:
        """All objects, and the resourceVersion to start a watch from. Adds apiVersion and kind to each object, because
        the items of a List have none."""
        answer = self._request("GET", resource.path(namespace))
        items = [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in answer["items"]]
        return items, answer["metadata"]["resourceVersion"]

    def objects(self, kind: str, namespace: str = "") -> list[Object]:
        return self.listing(BY_KIND[kind], namespace)[0]

    def custom(self) -> list[Resource]:
        """The resources of the lab's CustomResourceDefinitions."""
        return [resource for definition in self.objects("CustomResourceDefinition") for resource in defined(definition)]

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found: Object = self._request("GET", resource.path(namespace, name))
        return found

    def patch(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Object:
        """A JSON merge patch (RFC 7386): None removes a field. Raises RequestError."""
        kind = {"Content-Type": "application/merge-patch+json"}
        found: Object = self._request("PATCH", resource.path(namespace, name, subresource), body, kind)
        return found

    def watch(self, resource: Resource, namespace: str, version: str, name: str = "") -> Iterator[tuple[str, Object]]:
        """(ADDED | MODIFIED | DELETED, object) since `version`, until the API ends the watch."""
        query = {"watch": "true", "resourceVersion": version}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("GET", _url(resource.path(namespace), query), headers=self._headers)
            for line in connection.getresponse():
                event = json.loads(line)
                yield event["type"], event["object"]
        finally:
            connection.close()

    def writer(self) -> HttpObjects:
        """The client that apply.apply and apply.delete take."""
        return HttpObjects("127.0.0.1", self._port)

    def control(self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = _TIMEOUT) -> Any:
        """Send a request to the daemon's control socket (control.py), and wait for `seconds`."""
        connection = _UnixConnection(str(files.LabFiles(self.lab).socket), seconds)
        return _exchange(connection, method, path, body, {}, self.lab)

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        return _exchange(connection, method, path, body, {**self._headers, **(headers or {})}, self.lab)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    lab: str,
) -> Any:
    try:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        response = connection.getresponse()
        answer = json.loads(response.read() or b"null")
    except (OSError, http.client.HTTPException) as error:
        raise CannotRunError(
            f"lab {lab}: its API does not answer: {error}", f"see nodenet lab status --name {lab}"
        ) from error
    finally:
        connection.close()
    if response.status >= 400:
        raise RequestError(response.status, answer.get("message", response.reason))
    return answer


def _url(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
