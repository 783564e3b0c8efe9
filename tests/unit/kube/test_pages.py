"""Lists are read piece by piece, whatever the pieces and whatever the objects contain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from nodenet.kube import pages
from nodenet.kube.protocol import ListPage

# Strings and structures that look like the place between two items.
TRICKY = '},{"metadata":{"name":"x"}},{"metadata":'
ITEMS: list[Any] = [
    {"metadata": {"name": f"pod-{number}", "labels": {"a": TRICKY}}, "spec": {"list": [{"metadata": {}}] * 3}}
    for number in range(50)
]
PAGE = {"kind": "PodList", "metadata": {"resourceVersion": "7", "continue": "t"}, "items": ITEMS}
COMPACT = json.dumps(PAGE, separators=(",", ":")).encode()
LAST_METADATA = json.dumps({"items": ITEMS, "metadata": PAGE["metadata"]}, separators=(",", ":")).encode()


async def read(body: bytes, chunk: int, piece: int) -> tuple[list[Any], ListPage, int]:
    """The items, the page, and the number of items that came before the last chunk was read."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for start in range(0, len(body), chunk):
            sent = start + chunk
            yield body[start : start + chunk]

    items, early = [], 0
    async for found in pages.read(chunks(), piece):
        if isinstance(found, ListPage):
            return items, found, early
        items.append(msgspec.json.decode(found))
        early += sent < len(body)
    raise AssertionError("no page at the end")


@pytest.mark.parametrize("body", [COMPACT, LAST_METADATA, json.dumps(PAGE, indent=1).encode()])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("piece", [1, 100, 2000, 1 << 20])
async def test_every_item_once(body: bytes, chunk: int, piece: int) -> None:
    items, page, _ = await read(body, chunk, piece)
    assert items == ITEMS
    assert (page.metadata.resource_version, page.metadata.continue_, page.items) == ("7", "t", None)


async def test_items_come_before_the_end() -> None:
    assert (await read(COMPACT, 64, 500))[2] > 30


@pytest.mark.parametrize("items", [[], None])
async def test_an_empty_list(items: Any) -> None:
    body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": items}, separators=(",", ":")).encode()
    found, page, _ = await read(body, 3, 1)
    assert (found, page.metadata.resource_version) == ([], "7")


@pytest.mark.parametrize("body", [COMPACT[:-5], COMPACT[:300], COMPACT.replace(b"pod-30", b'pod"30'), b"", b"<html>"])
async def test_a_broken_answer_raises(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        await read(body, 64, 100)


async def test_a_long_item_is_not_decoded_with_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place between two items may be inside of one: the attempts become rarer."""
    attempts = 0
    complete = pages._complete

    def counted(piece: bytearray) -> list[msgspec.Raw] | None:
        nonlocal attempts
        attempts += 1
        return complete(piece)

    monkeypatch.setattr(pages, "_complete", counted)
    long = {"metadata": {"name": "long"}, "parts": [{"metadata": {"number": number}} for number in range(5000)]}
    body = json.dumps({"metadata": {}, "items": [long]}, separators=(",", ":")).encode()
    items, _, _ = await read(body, 100, 100)
    assert items == [long]
    assert attempts < 20
