"""Bodies of the API's HTTP answers: objects, lists, Tables, watch lines. Pure; the caller passes the time."""

from __future__ import annotations

from typing import Any

import msgspec

from nodenet.lab.apiserver import tables
from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.storage import Stored
from nodenet.lab.apiserver.watch import Page, WatchEvent

Obj = dict[str, Any]
dumps = msgspec.json.Encoder().encode
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


def page(resource: Resource, found: Page) -> bytes:
    """A List, joined from the stored JSON texts without decoding them."""
    metadata: Obj = {"resourceVersion": str(found.version)}
    if found.token:
        metadata |= {"continue": found.token, "remainingItemCount": found.remaining}
    head = dumps({"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata})
    return head[:-1] + b',"items":[' + b",".join(stored.raw for stored in found.items) + b"]}"


def table(kind: str, items: list[Stored], metadata: Obj, include: str, now: float) -> Obj:
    """A meta.k8s.io/v1 Table. `include` is the request's includeObject: None, Metadata or Object."""
    definitions = [
        {"name": c.name, "type": c.type, "format": c.format, "description": "", "priority": c.priority}
        for c in tables.columns(kind)
    ]
    rows = []
    for stored in items:
        obj = stored.decode()
        row: Obj = {"cells": tables.cells(kind, obj, now)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = {**partial, "metadata": obj["metadata"]}
        rows.append(row)
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return {**head, "columnDefinitions": definitions, "rows": rows}


def watch_line(resource: Resource, event: WatchEvent, include: str | None, now: float) -> bytes:
    """One line of a watch; `include` None: plain objects, else Tables."""
    head = b'{"type":"' + event.type.encode() + b'","object":'
    if event.object is not None and include is None:
        return head + event.object.raw + b"}\n"
    metadata: Obj = {"resourceVersion": str(event.version), "creationTimestamp": None}
    if event.initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    if include is not None:
        items = [event.object] if event.object else []
        return head + dumps(table(resource.key, items, metadata, include, now)) + b"}\n"
    return head + dumps({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}) + b"}\n"


def error_line(status: Obj) -> bytes:
    """The ERROR event that ends a watch."""
    return dumps({"type": "ERROR", "object": status}) + b"\n"


def success(resource: Resource, stored: Stored) -> Obj:
    """The answer to a DELETE after which the object is gone."""
    details = {"name": stored.ref[1], "group": resource.group, "kind": resource.plural, "uid": stored.uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
