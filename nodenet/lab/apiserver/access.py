"""Authenticates requests and decides what they may do. This matters because an API client can run commands as root on
this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import ApiError

# Health checks, open to everyone as in a cluster.
OPEN_PATHS = ("/healthz", "/livez", "/readyz")


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user. `reads`: the kinds that it may read; None: it may read and write everything. `patches`:
    the kinds that it may patch too; `creates`: those that it may create."""

    name: str
    reads: frozenset[str] | None = None
    patches: frozenset[str] = frozenset()
    creates: frozenset[str] = frozenset()

    def require(self, method: str, resource: Resource | None) -> None:
        """Raises a 403 ApiError if the user may not do this. `resource` None: discovery, which every user may read."""
        if self.reads is None or (method == "GET" and (resource is None or resource.kind in self.reads)):
            return
        writes = {"PATCH": self.patches, "POST": self.creates}.get(method, frozenset())
        if resource is not None and resource.kind in writes:
            return
        what = f'resource "{resource.plural}" in API group "{resource.group}"' if resource is not None else "this path"
        message = f'forbidden: User "{self.name}" cannot {method} {what}'
        raise ApiError(403, "Forbidden", message, resource=resource)


ADMIN = User("admin")


class Access:
    """Users by bearer token. Without any tokens every client is the administrator; use that only in tests."""

    def __init__(self, tokens: Mapping[str, User] | None = None) -> None:
        # Look up digests, so that the time of the lookup reveals nothing about a token.
        self._users = {_digest(token): user for token, user in (tokens or {}).items()}

    def user(self, request: web.Request) -> User:
        """The user of a request. Raises a 401 ApiError for a request without a valid token."""
        if not self._users:
            return ADMIN
        found = self._bearer(request)
        if found is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return found

    def _bearer(self, request: web.Request) -> User | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self._users.get(_digest(token.strip())) if scheme.lower() == "bearer" else None


def reader(name: str, kinds: Iterable[str], patches: Iterable[str] = (), creates: Iterable[str] = ()) -> User:
    """A user who may read these kinds, patch and create some, and write nothing else."""
    return User(name, frozenset(kinds), frozenset(patches), frozenset(creates))


def _digest(token: str) -> bytes:
    # A header may contain any bytes; aiohttp decodes invalid ones as surrogates.
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
