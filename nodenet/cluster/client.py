"""The API of one cluster for commands that run once and end: errors are for people, and nothing is retried."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from nodenet.errors import CannotRunError, NodenetError
from nodenet.kinds import ApiResource
from nodenet.kube import config, pages, protocol
from nodenet.kube.config import ClusterAccess
from nodenet.kube.reader import PAGE_SIZE
from nodenet.kube.session import NETWORK_ERRORS, AnswerError, Session
from nodenet.kube.writer import MANAGER, PatchType

Obj = dict[str, Any]

REQUEST_SECONDS = 30.0

# Selects what nodenet's manifests make (daemonset/).
SELECTOR = "app.kubernetes.io/name=nodenet"

NAMESPACES = ApiResource("", "v1", "Namespace", "namespaces", namespaced=False)
NODES = ApiResource("", "v1", "Node", "nodes", namespaced=False)
PODS = ApiResource("", "v1", "Pod", "pods")
SERVICES = ApiResource("", "v1", "Service", "services")
EVENTS = ApiResource("", "v1", "Event", "events")
CONFIG_MAPS = ApiResource("", "v1", "ConfigMap", "configmaps")
DAEMON_SETS = ApiResource("apps", "v1", "DaemonSet", "daemonsets")
NETWORK_POLICIES = ApiResource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")


class RefusedError(NodenetError):
    """The API refused a request. The message names the object, and what the API says: it names the field. `code`: the
    HTTP status."""

    def __init__(self, what: str, error: AnswerError) -> None:
        super().__init__(f"{what}: {error}", _HINTS.get(error.code, ""))
        self.code = error.code
        self.reason = error.reason


_HINTS = {
    401: "the credentials of the kubeconfig are not valid, or expired",
    403: "the user of the kubeconfig lacks this right: kubectl auth can-i --list shows what it has",
}


def access(kubeconfig: str | None, context: str | None) -> ClusterAccess:
    """The cluster that kubectl would use, also with a credential plugin. Raises BadInputError naming file and field."""
    path = Path(kubeconfig) if kubeconfig else config.default_kubeconfig()
    return config.from_kubeconfig(path, context or "", plugins=True)


class NotServedError(CannotRunError):
    """The cluster does not serve a kind."""


class Cluster:
    """Use it as an async context manager. Methods raise RefusedError for what the API refuses, and CannotRunError if it
    does not answer."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self.session = Session(access)
        self._served: dict[str, list[protocol.ServedResource]] = {}

    async def __aenter__(self) -> Self:
        await self.session.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.__aexit__(kind, error, trace)

    async def document(self, path: str, params: Mapping[str, str] | None = None) -> Obj:
        """The JSON object at a path."""
        found = json.loads(await self.text(path, params))
        if not isinstance(found, dict):
            raise CannotRunError(f"{self.access.server}{path}: expected a JSON object")
        return found

    async def text(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """The body of the answer at a path, for example a log."""
        async with (
            self.explained(f"GET {path}"),
            asyncio.timeout(REQUEST_SECONDS),
            self.session.get(path, params) as response,
        ):
            return await response.read()

    async def find(self, resource: ApiResource, namespace: str, name: str) -> Obj | None:
        """One object; None if it does not exist, or its kind is not served."""
        try:
            return await self.document(resource.path(namespace, name))
        except RefusedError as error:
            if error.code == 404:
                return None
            raise

    async def list(self, resource: ApiResource, namespace: str = "", **selectors: str) -> list[Obj]:
        """All objects, with apiVersion and kind. `selectors`: labelSelector, fieldSelector. An empty namespace means
        all."""
        found: dict[str, Obj] = {}
        progress = pages.Progress()
        path, params = resource.path(namespace), {"limit": str(PAGE_SIZE), **selectors}
        while True:
            page = await self.document(path, params)
            kind = {"apiVersion": resource.api_version, "kind": resource.kind}
            found |= {pages.key_of(item): {**item, **kind} for item in page.get("items") or ()}
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return list(found.values())
            async with self.explained(f"GET {path}"):
                progress.check(token, len(found))
            params["continue"] = token

    async def apply(self, obj: Obj, *, dry_run: bool = False, force: bool = True) -> Obj:
        """Server-side apply. Returns the object as it is then. Unknown fields are refused."""
        resource = await self.resource(obj)
        params = {"fieldManager": MANAGER, "fieldValidation": "Strict", "force": "true" if force else "false"}
        if dry_run:
            params["dryRun"] = "All"
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace", ""), metadata["name"])
        return await self._send("PATCH", path, obj, PatchType.APPLY, params, describe(obj))

    async def create(self, obj: Obj) -> Obj:
        resource = await self.resource(obj)
        path = resource.path(obj["metadata"].get("namespace", ""))
        return await self._send("POST", path, obj, "application/json", {"fieldManager": MANAGER}, describe(obj))

    async def patch_status(self, resource: ApiResource, name: str, body: Obj) -> None:
        """A strategic merge patch of the status of an object without a namespace."""
        path, params = f"{resource.path('', name)}/status", {"fieldManager": MANAGER}
        await self._send("PATCH", path, body, PatchType.STRATEGIC, params, f"{resource.kind} {name}: status")

    async def delete(self, resource: ApiResource, namespace: str, name: str, grace: int | None = None) -> bool:
        """Delete an object, and what it owns. False if it did not exist."""
        body: Obj = {"propagationPolicy": "Background"} | ({} if grace is None else {"gracePeriodSeconds": grace})
        what = f"{resource.kind} {f'{namespace}/' if namespace else ''}{name}"
        try:
            await self._send("DELETE", resource.path(namespace, name), body, "application/json", {}, what)
        except RefusedError as error:
            if error.code == 404:
                return False
            raise
        return True

    async def resource(self, obj: Obj) -> ApiResource:
        """The resource of an object's kind, by discovery. Raises NotServedError if the cluster does not serve it."""
        api_version, kind = str(obj.get("apiVersion")), str(obj.get("kind"))
        group, _, version = api_version.rpartition("/")
        base = ApiResource(group, version, kind, "").base
        if base not in self._served:
            try:
                data = await self.text(base)
            except RefusedError as error:
                if error.code != 404:
                    raise
                data = b"{}"
            self._served[base] = msgspec.json.decode(data, type=protocol.ResourceList).resources or []
        for served in self._served[base]:
            if served.kind == kind and "/" not in served.name:
                return ApiResource(group, version, kind, served.name, served.namespaced)
        raise NotServedError(f"{describe(obj)}: the cluster does not serve {kind} of {api_version}")

    async def _send(
        self, method: str, path: str, body: Obj, content_type: str, params: Mapping[str, str], what: str
    ) -> Obj:
        async with self.explained(what):
            data = msgspec.json.encode(body)
            answer = await self.session.send(method, path, data, content_type, params, REQUEST_SECONDS)
        return msgspec.json.decode(answer, type=Obj)

    @asynccontextmanager
    async def explained(self, what: str) -> AsyncIterator[None]:
        """Raises the errors of a request as errors for people."""
        try:
            yield
        except AnswerError as error:
            raise RefusedError(what, error) from error
        except NETWORK_ERRORS as error:
            text = str(error) or type(error).__name__
            raise CannotRunError(
                f"{self.access.server}: {what}: {text}", "is this the cluster, and is it up?"
            ) from error


def describe(obj: Mapping[str, Any]) -> str:
    """Kind and name of an object, for messages."""
    metadata = obj.get("metadata") or {}
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj.get('kind')} {place}{metadata.get('name')}"


def owned_by(obj: Mapping[str, Any], kind: str, name: str) -> bool:
    """Whether a controller of this kind and name made the object."""
    owners: Sequence[Mapping[str, Any]] = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return any(owner.get("kind") == kind and owner.get("name") == name for owner in owners)
