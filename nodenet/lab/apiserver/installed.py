"""The CustomResourceDefinitions that a new lab has, as clusters with the API of ClusterNetworkPolicy do. They can be
deleted and applied again."""

from __future__ import annotations

from typing import Any

from nodenet.kinds import CLUSTER_NETWORK_POLICY
from nodenet.lab.apiserver.catalog import defined

_RESOURCE = CLUSTER_NETWORK_POLICY.resource

DEFINITIONS: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": _RESOURCE.qualified},
        "spec": {
            "group": _RESOURCE.group,
            "scope": "Cluster",
            "names": {
                "plural": _RESOURCE.plural,
                "singular": _RESOURCE.kind.lower(),
                "kind": _RESOURCE.kind,
                "listKind": f"{_RESOURCE.kind}List",
                "shortNames": ["cnp"],
            },
            "versions": [
                {
                    "name": _RESOURCE.version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    # The lab checks the objects itself (policy.py).
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    },
)
RESOURCES = tuple(resource for definition in DEFINITIONS for resource in defined(definition))
