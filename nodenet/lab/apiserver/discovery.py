"""The discovery documents: versions, groups, kinds, and the OpenAPI documents that kubectl needs.

The OpenAPI v3 documents contain no schemas. So kubectl leaves the check of fields to the server (fieldValidation) and
builds patches from its built-in types.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nodenet.lab.apiserver.catalog import Catalog
from nodenet.lab.apiserver.resources import Resource

Obj = dict[str, Any]
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
# The Kubernetes version that the defaults and columns follow.
VERSION: Obj = {"major": "1", "minor": "33", "gitVersion": "v1.33.0+nodenet-lab", "platform": "linux/amd64"}


def version() -> Obj:
    return {
        **VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
    }


def core_versions() -> Obj:
    """/api"""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def groups(catalog: Catalog) -> Obj:
    """/apis"""
    found = [_group(catalog, name) for name in catalog.groups()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def _group(catalog: Catalog, name: str) -> Obj:
    found = sorted({r.version for r in catalog if r.group == name})
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in found]
    return {"name": name, "versions": versions, "preferredVersion": versions[-1]}


def group(catalog: Catalog, name: str) -> Obj:
    """/apis/<group>"""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(catalog, name)}


def resources(catalog: Catalog, group_name: str, group_version: str) -> Obj:
    """/api/v1 and /apis/<group>/<version>"""
    found: list[Obj] = []
    for resource in catalog:
        if (resource.group, resource.version) == (group_name, group_version):
            found.append(_entry(resource))
            found += [_subresource(resource, name) for name in resource.subresources]
    name = f"{group_name}/{group_version}" if group_name else group_version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found}


def _entry(resource: Resource) -> Obj:
    entry: Obj = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": VERBS,
    }
    if resource.short:
        entry["shortNames"] = list(resource.short)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _subresource(resource: Resource, name: str) -> Obj:
    entry: Obj = {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
    if name == "scale":
        return {**entry, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]}
    if name == "binding":
        return {**entry, "kind": "Binding", "verbs": ["create"]}
    verbs = ["update"] if name == "finalize" else ["get", "patch", "update"]
    return {**entry, "kind": resource.kind, "verbs": verbs}


def openapi_paths(catalog: Catalog) -> Obj:
    """/openapi/v3: where each group's document is."""
    bases = sorted({resource.base for resource in catalog})
    return {"paths": {base[1:]: {"serverRelativeURL": f"/openapi/v3{base}?hash={_digest(base)}"} for base in bases}}


def _digest(base: str) -> str:
    return hashlib.blake2b(f"{base} {VERSION['gitVersion']}".encode(), digest_size=8).hexdigest().upper()


def openapi(catalog: Catalog, group_name: str, group_version: str) -> Obj:
    """/openapi/v3/...: the write operations, each with the fieldValidation parameter."""
    paths: Obj = {}
    for resource in catalog:
        if (resource.group, resource.version) == (group_name, group_version):
            one = resource.path("{namespace}", "{name}")
            paths[resource.path("{namespace}")] = {"post": _operation(resource, "create")}
            paths[one] = {"put": _operation(resource, "replace"), "patch": _operation(resource, "patch")}
    info = {"title": "nodenet lab", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


def _operation(resource: Resource, verb: str) -> Obj:
    names = ("dryRun", "fieldManager", "fieldValidation")
    return {
        "operationId": f"{verb}{resource.kind}",
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": {
            "group": resource.group,
            "version": resource.version,
            "kind": resource.kind,
        },
    }
