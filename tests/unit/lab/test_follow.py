"""The lab's own way to follow a kind: nothing is missed, also by a reader that is too slow for the history."""

from __future__ import annotations

import asyncio
from typing import Any

from nodenet.lab.apiserver.client import Change
from nodenet.lab.apiserver.server import ApiServer


def pod(name: str, node: str = "n1") -> dict[str, Any]:
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def words(change: Change) -> tuple[str, str]:
    obj = change.new or change.old or {}
    kind = "gone" if change.new is None else "new" if change.old is None else "changed"
    return kind, obj["metadata"]["name"]


async def take(changes: Any, count: int) -> list[Change]:
    async with asyncio.timeout(5):
        return [await anext(changes) for _ in range(count)]


async def test_what_is_there_and_every_change() -> None:
    client = ApiServer().client
    await client.create(pod("a"))
    await client.create(pod("other", "n2"))
    changes = client.follow("Pod", "spec.nodeName=n1")
    assert [words(c) for c in await take(changes, 1)] == [("new", "a")]
    await client.create(pod("b"))
    await client.patch("Pod", "a", {"metadata": {"labels": {"x": "y"}}})
    await client.delete("Pod", "b", grace=0)
    found = await take(changes, 3)
    assert [words(c) for c in found] == [("new", "b"), ("changed", "a"), ("gone", "b")]
    assert found[1].old is not None
    assert "labels" not in found[1].old["metadata"]
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_reader_that_falls_behind_gets_the_difference() -> None:
    api = ApiServer(history=2)
    client = api.client
    for name in ("same", "away", "again"):
        await client.create(pod(name))
    changes = client.follow("Pod")
    assert [words(c) for c in await take(changes, 3)] == [("new", "again"), ("new", "away"), ("new", "same")]
    for name in ("away", "again"):
        await client.delete("Pod", name, grace=0)
    await client.create(pod("again"))
    for number in range(5):
        await client.patch("Pod", "same", {"metadata": {"labels": {"x": str(number)}}})
    found = await take(changes, 4)
    # `again` is another pod of the same name.
    expected = [("gone", "again"), ("gone", "away"), ("new", "again"), ("changed", "same")]
    assert [words(c) for c in found] == expected
    await changes.aclose()  # type: ignore[attr-defined]
