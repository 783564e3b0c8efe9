"""Functions that controllers share: owners, readiness, pods from templates, hashes of templates, writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.names import safe_text
from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.apiserver.selectors import from_object, matches
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.apiserver.tables import is_ready

Obj = dict[str, Any]
Key = tuple[str, str]
HASH_LABEL = "pod-template-hash"
REVISION_LABEL = "controller-revision-hash"


def key_of(obj: Obj) -> Key:
    """(namespace, name)"""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference of its controller, or None."""
    owners: list[Obj] = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def owner_keys(kind: str, *objects: Obj | None) -> list[Key]:
    """The keys of the objects of `kind` that control any of `objects`."""
    found = []
    for obj in objects:
        owner = controller_of(obj) if obj is not None else None
        if obj is not None and owner is not None and owner["kind"] == kind:
            found.append((obj["metadata"].get("namespace", ""), owner["name"]))
    return found


def owner_reference(owner: Obj) -> Obj:
    metadata = owner["metadata"]
    head = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return {**head, "controller": True, "blockOwnerDeletion": True}


def deleting(obj: Obj) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def finished(pod: Obj) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def active(pods: Iterable[Obj]) -> list[Obj]:
    """The pods that are neither finished nor in deletion."""
    return [pod for pod in pods if not deleting(pod) and not finished(pod)]


def ready(pods: Iterable[Obj]) -> int:
    return sum(1 for pod in pods if is_ready(pod))


def template_hash(template: Obj) -> str:
    """A hash of a pod template, up to 10 characters."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":")).encode()
    return safe_text(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()), 10)


def pod_from(owner: Obj, template: Obj, labels: dict[str, str], name: str = "") -> Obj:
    """A pod of `owner`. Without `name` the API generates a name."""
    metadata = template.get("metadata") or {}
    own: Obj = {
        "namespace": owner["metadata"]["namespace"],
        "labels": {**(metadata.get("labels") or {}), **labels},
        "annotations": dict(metadata.get("annotations") or {}),
        "ownerReferences": [owner_reference(owner)],
    }
    own |= {"name": name} if name else {"generateName": owner["metadata"]["name"] + "-"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": dict(template["spec"])}


def nonzero(**counts: int) -> Obj:
    """Counts for a status. Zeros are left out, as the API does."""
    return {name: count for name, count in counts.items() if count}


async def set_status(client: LocalClient, obj: Obj, status: Obj) -> None:
    """Write a status if it differs."""
    if (obj.get("status") or {}) != status:
        await client.update({**obj, "status": status}, "status")


def condition(old: Obj, kind: str, state: bool, reason: str, message: str, now: str) -> Obj:
    """A condition. It keeps its transition time if its state does not change. `old` is the previous status."""
    text = "True" if state else "False"
    before: Obj = next((c for c in old.get("conditions") or () if c.get("type") == kind), {})
    same = before.get("status") == text
    unchanged = all(before.get(key) == value for key, value in (("reason", reason), ("message", message)))
    return {
        "type": kind,
        "status": text,
        "reason": reason,
        "message": message,
        "lastTransitionTime": before.get("lastTransitionTime", now) if same else now,
        "lastUpdateTime": before.get("lastUpdateTime", now) if same and unchanged else now,
    }


async def claim(client: LocalClient, owner: Obj, kind: str, adopt: bool = True) -> list[Obj]:
    """The objects of `kind` that `owner` controls. Adopts orphans that match its selector, and releases owned objects
    that no longer match.

    Rule: kubernetes pkg/controller/controller_ref_manager.
    """
    namespace, uid = owner["metadata"]["namespace"], owner["metadata"]["uid"]
    selector = from_object(owner["spec"].get("selector"))
    found = []
    for stored in client.peek(kind, namespace):
        fits = selector is not None and matches(selector, stored.labels)
        owned = uid.encode() in stored.raw
        if not fits and not owned:
            continue
        obj = stored.decode()
        controller = controller_of(obj)
        if controller is None:
            if not (fits and adopt) or deleting(owner) or deleting(obj):
                continue
            obj = await _set_owners(client, obj, [*obj["metadata"].get("ownerReferences", ()), owner_reference(owner)])
        elif controller["uid"] != uid:
            continue
        elif not fits and not deleting(obj):
            others = [o for o in obj["metadata"]["ownerReferences"] if o["uid"] != uid]
            await _set_owners(client, obj, others)
            continue
        found.append(obj)
    return found


async def _set_owners(client: LocalClient, obj: Obj, owners: list[Obj]) -> Obj:
    return await client.update({**obj, "metadata": {**obj["metadata"], "ownerReferences": owners}})


async def get(client: LocalClient, kind: str, key: Key) -> Obj | None:
    """The object, or None if it does not exist."""
    try:
        return await client.get(kind, key[1], key[0])
    except ApiError as error:
        if error.code != 404:
            raise
        return None


async def remove(client: LocalClient, obj: Obj, kind: str = "") -> None:
    """Delete this object (by uid). Not an error if it is gone already. `kind`: for a custom resource."""
    metadata = obj["metadata"]
    try:
        await client.delete(kind or obj["kind"], metadata["name"], metadata.get("namespace", ""), uid=metadata["uid"])
    except ApiError as error:
        if error.code not in (404, 409):
            raise


def served(owner: Obj) -> bool:
    """True if this API serves the kind of an owner reference."""
    resource = BY_KIND.get(owner["kind"])
    return resource is not None and resource.api_version == owner["apiVersion"]
