"""Decodes JSON of the Kubernetes API into the model, as declared in kinds.py."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec

from netpolicy.types import PolicyError
from nodenet.decode.salvage import salvage
from nodenet.decode.schema import ObjectName
from nodenet.decode.values import Unreads
from nodenet.interned import shared
from nodenet.kinds import ApiKind
from nodenet.kube.protocol import Named
from nodenet.model import ObjectRef

_NAMED = msgspec.json.Decoder(Named)


class DecodeError(ValueError):
    """An object that cannot be used. The message names the object and the field. `ref` is None and `version` is "" if
    unknown, and so is `uid`."""

    def __init__(self, kind: ApiKind, ref: ObjectRef | None, message: str, version: str = "", uid: str = "") -> None:
        super().__init__(f"{kind} {ref}: {message}" if ref else f"{kind} without a name: {message}")
        self.ref = ref
        self.version = version
        self.uid = uid


class Decoded(NamedTuple):
    """A decoded object. `obj` is None for an object that the agent does not use (an EndpointSlice without a Service).
    `unread`: one sentence for each part that was left out."""

    ref: ObjectRef
    version: str
    obj: object | None
    unread: tuple[str, ...] = ()
    uid: str = ""


def decode(kind: ApiKind, raw: bytes | msgspec.Raw) -> Decoded:
    """Decode one object. Raises DecodeError if it has no name, is not JSON or cannot be used at all."""
    unread: Unreads = []
    try:
        parsed, metadata = _parse(kind, raw, unread)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _unreadable(kind, raw, str(error)) from error
    ref = None if metadata is None else _ref(kind, metadata)
    if metadata is None or ref is None:
        raise DecodeError(kind, None, "; ".join(map(str, unread)) or "metadata.name: required")
    version = metadata.resource_version or ""
    try:
        obj = kind.build(ref, parsed, unread)
    except PolicyError as error:
        raise DecodeError(kind, ref, f"{error.field}: {error.message}", version, metadata.uid or "") from error
    return Decoded(ref, version, obj, tuple(map(str, unread)), metadata.uid or "")


def _parse(kind: ApiKind, raw: bytes | msgspec.Raw, unread: Unreads) -> tuple[Any, ObjectName | None]:
    """The object as its struct (a NetworkPolicy as a dict), and its metadata. Both are None if nothing can be read."""
    decoder = _decoder(kind)
    try:
        parsed = decoder.decode(raw)
    except msgspec.ValidationError:
        # Slow path, only for objects that do not match the schema.
        parsed = salvage(msgspec.json.decode(raw), decoder.type, unread)
    if isinstance(parsed, dict):
        return parsed, _metadata(kind, raw)
    return parsed, None if parsed is None else parsed.metadata


def name_of(kind: ApiKind, raw: bytes | msgspec.Raw) -> tuple[ObjectRef, str]:
    """Name and resourceVersion of an object; nothing else is decoded. Raises DecodeError."""
    metadata = _metadata(kind, raw)
    ref = _ref(kind, metadata)
    if ref is None:
        raise DecodeError(kind, None, "metadata.name: required")
    return ref, metadata.resource_version or ""


def _metadata(kind: ApiKind, raw: bytes | msgspec.Raw) -> ObjectName:
    try:
        return _NAMED.decode(raw).metadata
    except (msgspec.DecodeError, RecursionError) as error:
        raise DecodeError(kind, None, str(error)) from error


def _unreadable(kind: ApiKind, raw: bytes | msgspec.Raw, message: str) -> DecodeError:
    try:
        ref, version = name_of(kind, raw)
    except DecodeError:
        return DecodeError(kind, None, message)
    return DecodeError(kind, ref, message, version)


def _ref(kind: ApiKind, metadata: ObjectName) -> ObjectRef | None:
    if not metadata.name:
        return None
    # Many objects are in one namespace: they share its name.
    return ObjectRef(shared(metadata.namespace or "default") if kind.resource.namespaced else "", metadata.name)


@cache
def _decoder(kind: ApiKind) -> msgspec.json.Decoder[Any]:
    """Not strict: a number in quotes is still a number."""
    return msgspec.json.Decoder(kind.wire, strict=False)
