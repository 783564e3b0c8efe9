"""Parses and checks the path, query parameters and body of an HTTP request to the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import yaml
from aiohttp import web

from nodenet import manifests
from nodenet.lab.apiserver import protobuf
from nodenet.lab.apiserver.catalog import Catalog
from nodenet.lab.apiserver.registry import DeleteOptions, Options, Unknown
from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import ApiError, bad_request
from nodenet.lab.apiserver.watch import Query

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """The resource and object that a path names."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_path(catalog: Catalog, group: str, version: str, tail: str) -> Target:
    """Parse the path of a request. Raises a 404 ApiError that names what is not served."""
    parts = [part for part in tail.split("/") if part]
    namespace = ""
    own = ("status", "finalize")
    if parts[:1] == ["namespaces"] and len(parts) > 2 and not (not group and len(parts) == 3 and parts[2] in own):
        namespace, parts = parts[1], parts[2:]
    where = f"{group}/{version}" if group else version
    resource = catalog.find(group, version, parts[0]) if parts else None
    if resource is None or len(parts) > 3:
        raise ApiError(404, "NotFound", f"the lab serves no {'/'.join(parts) or 'such path'} in {where}")
    name, subresource = ([*parts[1:], "", ""])[:2]
    if subresource and subresource not in resource.subresources:
        message = f"the lab serves no {resource.qualified}/{subresource}"
        raise ApiError(404, "NotFound", message, resource=resource, name=name)
    if resource.namespaced and name and not namespace:
        raise ApiError(
            404, "NotFound", f"{resource.qualified} are in namespaces: the path names none", resource=resource
        )
    return Target(resource, namespace, name, subresource)


def table_rows(request: web.Request) -> str | None:
    """What the rows of a Table must include; None if the client does not ask for a Table."""
    for accepted in request.headers.getall("Accept", []):
        for part in accepted.split(","):
            if "as=Table" in part and "v=v1;" in part.replace(" ", "") + ";":
                return request.query.get("includeObject", "Metadata")
    return None


def query_of(request: web.Request, target: Target) -> Query:
    fields = request.query.get("fieldSelector", "")
    if target.name:
        fields = f"metadata.name={target.name}" + (f",{fields}" if fields else "")
    return Query(target.resource, target.namespace, request.query.get("labelSelector", ""), fields)


def number(request: web.Request, key: str) -> int | None:
    text = request.query.get(key, "")
    if text and not text.isdigit():
        raise bad_request(f"{key}: expected a whole number, got {text!r}")
    return int(text) if text else None


def version(request: web.Request) -> int | None:
    return number(request, "resourceVersion")


def write_options(request: web.Request, warnings: list[str]) -> Options:
    validation = request.query.get("fieldValidation") or Unknown.WARN
    if validation not in tuple(Unknown):
        raise bad_request(f"fieldValidation: expected {', '.join(Unknown)}, got {validation!r}")
    dry_run = request.query.get("dryRun", "")
    if dry_run not in ("", "All"):
        raise bad_request(f"dryRun: expected All, got {dry_run!r}")
    return Options(dry_run == "All", Unknown(validation), request.query.get("fieldManager", ""), warnings)


def delete_options(request: web.Request, body: Obj) -> DeleteOptions:
    grace = body.get("gracePeriodSeconds", number(request, "gracePeriodSeconds"))
    propagation = body.get("propagationPolicy") or request.query.get("propagationPolicy") or "Background"
    if propagation not in ("Background", "Foreground", "Orphan"):
        raise bad_request(f"propagationPolicy: expected Background, Foreground or Orphan, got {propagation!r}")
    if body.get("orphanDependents"):
        propagation = "Orphan"
    wanted = body.get("preconditions") or {}
    dry_run = bool(body.get("dryRun") or request.query.get("dryRun"))
    return DeleteOptions(grace, propagation, wanted.get("uid") or "", wanted.get("resourceVersion") or "", dry_run)


async def body_of(request: web.Request, resource: Resource, *, empty: bool = False, lists: bool = False) -> Any:
    text = await request.read()
    if not text and empty:
        return {}
    if "protobuf" in request.content_type:
        return protobuf.decode(text)
    if "cbor" in request.content_type:
        raise ApiError(415, "UnsupportedMediaType", f"the lab reads JSON and YAML, not {request.content_type}")
    try:
        found = _yaml(text.decode()) if "yaml" in request.content_type else msgspec.json.decode(text)
    except (msgspec.DecodeError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the object provided is unrecognized: {error}", resource) from error
    if not isinstance(found, dict) and not (lists and isinstance(found, list)):
        raise bad_request(f"expected an object, got {type(found).__name__}", resource)
    return found


def _yaml(text: str) -> object:
    found = manifests.documents(text)
    if len(found) != 1:
        raise yaml.YAMLError(f"expected one document, got {len(found)}")
    return found[0]


def check_kind(body: Any, target: Target) -> None:
    """Raises an ApiError if the body's kind differs from the path's. A body without a kind gets that of the path."""
    if not isinstance(body, dict):
        return
    resource = target.resource
    body.setdefault("kind", resource.kind)
    body.setdefault("apiVersion", resource.api_version)
    if (body["kind"], body["apiVersion"]) != (resource.kind, resource.api_version):
        message = (
            f"{body['apiVersion']} {body['kind']} in the body does not match {resource.api_version} {resource.kind}"
        )
        raise bad_request(f"the object provided is unrecognized: {message} of the URL", resource)
