"""Lists of the client that runs once and ends."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.cluster.client import PODS, Cluster
from nodenet.errors import CannotRunError
from nodenet.kube.config import ClusterAccess
from tests.unit.kube.api import Script, page, serving


def pod(name: str) -> Any:
    return {"metadata": {"name": name, "namespace": "default"}}


async def test_pages_of_a_list() -> None:
    script = Script([page(pod("a"), more="t"), page(pod("a"), pod("b"))])
    async with serving(script) as url, Cluster(ClusterAccess(url)) as cluster:
        found = await cluster.list(PODS, labelSelector="x=y")
    assert [(obj["kind"], obj["apiVersion"], obj["metadata"]["name"]) for obj in found] == [
        ("Pod", "v1", "a"),
        ("Pod", "v1", "b"),
    ]
    assert script.queries == [
        {"limit": "500", "labelSelector": "x=y"},
        {"limit": "500", "labelSelector": "x=y", "continue": "t"},
    ]


@pytest.mark.parametrize("tokens", ["ttt", "abcdefghijklmnop"])
async def test_a_list_without_an_end_is_an_error(tokens: str) -> None:
    script = Script([*(page(pod("a"), more=token) for token in tokens), page(pod("z"))])
    async with serving(script) as url, Cluster(ClusterAccess(url)) as cluster:
        with pytest.raises(CannotRunError, match="GET /api/v1/pods: the list has no end"):
            await cluster.list(PODS)
