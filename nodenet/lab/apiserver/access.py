"""Who a request comes from, and what it may do. A client of the API decides what runs as root on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import ApiError

# Whether the endpoint works: open to all, as in a cluster.
OPEN_PATHS = ("/healthz", "/livez", "/readyz")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who was recognised. `reads`: the kinds that may be read; None: everything may be read and written."""

    name: str
    reads: frozenset[str] | None = None

    def require(self, method: str, resource: Resource | None) -> None:
        """Raises a 403 ApiError. `resource` None: discovery, which every user may read."""
        if self.reads is None or (method == "GET" and (resource is None or resource.kind in self.reads)):
            return
        what = f'resource "{resource.plural}" in API group "{resource.group}"' if resource is not None else "this path"
        message = f'forbidden: User "{self.name}" cannot {method} {what}'
        raise ApiError(403, "Forbidden", message, resource=resource)


ADMIN = User("admin")


class Access:
    """Users by bearer token. Without any token everybody is the administrator: for tests, and for nothing else."""

    def __init__(self, tokens: Mapping[str, User] | None = None) -> None:
        # By digest: how long the search takes says nothing about a token.
        self._users = {_digest(token): user for token, user in (tokens or {}).items()}

    def user(self, request: web.Request) -> User:
        """Raises a 401 ApiError for a request without a token that is known."""
        if not self._users:
            return ADMIN
        found = self._bearer(request)
        if found is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return found

    def _bearer(self, request: web.Request) -> User | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self._users.get(_digest(token.strip())) if scheme.lower() == "bearer" else None


def reader(name: str, kinds: Iterable[str]) -> User:
    """A user who may read these kinds and write nothing."""
    return User(name, frozenset(kinds))


def _digest(token: str) -> bytes:
    # A header may hold any bytes; they arrive as surrogates.
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
