"""A synchronous HTTP client of the API endpoint, for commands.

It uses only the standard library, so that a command starts quickly.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, Protocol
from urllib.parse import urlencode

from nodenet.errors import CannotRunError
from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import ApiError, Cause

Obj = dict[str, Any]
# Seconds. The endpoint answers from memory.
TIMEOUT = 30.0


class Objects(Protocol):
    """The verbs that `apply` needs. Errors are ApiError; unknown fields are refused."""

    def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        """None if the object does not exist."""
        ...

    def create(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj: ...

    def update(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj: ...

    def delete(self, resource: Resource, namespace: str, name: str) -> bool:
        """False if the object does not exist."""
        ...


class HttpObjects:
    """Objects over HTTP. Raises CannotRunError if the connection is refused or times out."""

    def __init__(self, host: str, port: int, token: str = "", timeout: float = TIMEOUT) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        try:
            return self._request("GET", resource.path(namespace, name), resource)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    def create(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj:
        path = resource.path(obj["metadata"].get("namespace", ""))
        return self._request("POST", _with(path, dry_run), resource, obj)

    def update(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj:
        path = resource.path(obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        return self._request("PUT", _with(path, dry_run), resource, obj)

    def delete(self, resource: Resource, namespace: str, name: str) -> bool:
        try:
            self._request("DELETE", resource.path(namespace, name), resource)
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        return True

    def close(self) -> None:
        self._connection.close()

    def _request(self, method: str, path: str, resource: Resource, body: Obj | None = None) -> Obj:
        try:
            answer = self._once(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The endpoint has closed the idle connection, so it has not seen this request: send it on a new one.
            answer = self._once(method, path, body)
        if answer[0] >= 400:
            raise _error(answer[0], answer[1], resource)
        return answer[1]

    def _once(self, method: str, path: str, body: Obj | None) -> tuple[int, Obj]:
        where = f"{self._connection.host}:{self._connection.port}"
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise CannotRunError(f"the API endpoint at {where} does not answer: {error}") from error


def _with(path: str, dry_run: bool) -> str:
    query = {"fieldValidation": "Strict", "fieldManager": "nodenet"} | ({"dryRun": "All"} if dry_run else {})
    return f"{path}?{urlencode(query)}"


def _error(code: int, status: Obj, resource: Resource) -> ApiError:
    details = status.get("details") or {}
    causes = [Cause(c.get("field", ""), c.get("message", ""), c.get("reason", "")) for c in details.get("causes") or ()]
    message = status.get("message") or f"HTTP status {code}"
    name = details.get("name", "")
    return ApiError(code, status.get("reason", ""), message, resource=resource, name=name, causes=causes)
