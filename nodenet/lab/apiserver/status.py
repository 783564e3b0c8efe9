"""Errors in the form of the Kubernetes API: a Status object with code, reason and causes that name fields.

The reasons and codes are those of apimachinery's meta/v1 StatusReason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nodenet.errors import NodenetError
from nodenet.lab.apiserver.resources import Resource


@dataclass(frozen=True, slots=True)
class Cause:
    """One problem of one field. `reason` is a name of the API's CauseType."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def invalid(field: str, value: object, message: str) -> Cause:
    """The cause for an invalid value."""
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return Cause(field, f"Invalid value: {shown}: {message}")


def required(field: str, message: str = "") -> Cause:
    return Cause(field, "Required value" + (f": {message}" if message else ""), "FieldValueRequired")


def forbidden(field: str, message: str) -> Cause:
    return Cause(field, f"Forbidden: {message}", "FieldValueForbidden")


def unsupported(field: str, value: object, known: Sequence[str]) -> Cause:
    choices = ", ".join(f'"{name}"' for name in known)
    return Cause(field, f'Unsupported value: "{value}": supported values: {choices}', "FieldValueNotSupported")


def duplicate(field: str, value: object) -> Cause:
    return Cause(field, f'Duplicate value: "{value}"', "FieldValueDuplicate")


class ApiError(NodenetError):
    """A request that the API endpoint refuses. `code`: the HTTP status. `reason`: the API's StatusReason."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        resource: Resource | None = None,
        name: str = "",
        causes: Sequence[Cause] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)
        self.exit_code = 2 if code in (400, 422) else 1
        self._resource = resource
        self._name = name

    def to_status(self) -> dict[str, Any]:
        """The Status object that is sent over HTTP."""
        details: dict[str, Any] = {}
        if self._name:
            details["name"] = self._name
        if self._resource is not None:
            # The API gives the kind if it validated an object (422), and the plural if it looked for one.
            details["group"] = self._resource.group
            details["kind"] = self._resource.kind if self.code == 422 else self._resource.plural
        if self.causes:
            details["causes"] = [{"reason": c.reason, "message": c.message, "field": c.field} for c in self.causes]
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": details,
            "code": self.code,
        }


def bad_request(message: str, resource: Resource | None = None) -> ApiError:
    return ApiError(400, "BadRequest", message, resource=resource)


def not_found(resource: Resource, name: str) -> ApiError:
    message = f'{resource.qualified} "{name}" not found'
    return ApiError(404, "NotFound", message, resource=resource, name=name)


def already_exists(resource: Resource, name: str) -> ApiError:
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, resource=resource, name=name)


def conflict(resource: Resource, name: str, message: str) -> ApiError:
    text = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {message}'
    return ApiError(409, "Conflict", text, resource=resource, name=name)


def denied(resource: Resource, name: str, message: str) -> ApiError:
    return ApiError(
        403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {message}', resource=resource, name=name
    )


def invalid_object(resource: Resource, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with every cause in the message and in details.causes."""
    texts = [str(cause) for cause in causes]
    listed = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return ApiError(
        422, "Invalid", f'{kind} "{name}" is invalid: {listed}', resource=resource, name=name, causes=causes
    )


def expired(message: str) -> ApiError:
    """410: the resourceVersion is older than the history. The client must list again."""
    return ApiError(410, "Expired", message)


def method_not_allowed(verb: str, resource: Resource) -> ApiError:
    text = f"the server does not allow this method on the requested resource: {verb} {resource.qualified}"
    return ApiError(405, "MethodNotAllowed", text, resource=resource)
