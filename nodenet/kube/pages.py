"""Reads the answer to a list request piece by piece, so that a list of any size needs about PIECE bytes at a time.

A server without streaming lists may ignore `limit` and send all objects in one answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nodenet.kube.protocol import ListPage

# Bytes to collect before items are decoded.
PIECE = 1 << 20
_OPENING = b'"items":['
# Between two items of a built-in kind, whose first field is metadata. Quotes inside of JSON strings are escaped, so
# this is never within a string. It may still be inside of an item: only decoding shows where an item ends.
_BETWEEN = b'},{"metadata":'
# A selector may leave a page without objects (the API's description of `limit`), but not so many in a row.
_MOST_WITHOUT_NEW = 10


class EndlessListError(Exception):
    """The pages of a list do not come to an end."""


@dataclass(slots=True)
class Progress:
    """Checks that the pages of one list lead to its end. A server or a proxy that ignores `continue` sends the first
    page for ever."""

    _tokens: set[str] = field(default_factory=set)
    _objects: int = 0
    _without_new: int = 0

    def check(self, token: str, objects: int) -> None:
        """Before the next page is asked for. `token`: its `continue`; `objects`: the number of different objects so
        far. Raises EndlessListError."""
        if token in self._tokens:
            raise EndlessListError("the list has no end: the server repeats a continue token")
        self._tokens.add(token)
        self._without_new = 0 if objects > self._objects else self._without_new + 1
        self._objects = objects
        if self._without_new >= _MOST_WITHOUT_NEW:
            raise EndlessListError(f"the list has no end: {_MOST_WITHOUT_NEW} pages in a row have no new object")


def key_of(item: Mapping[str, Any]) -> str:
    """Namespace and name of an object of a list, as one text."""
    metadata = item.get("metadata")
    if not isinstance(metadata, Mapping):
        return ""
    return f"{metadata.get('namespace') or ''}/{metadata.get('name') or ''}"


async def read(chunks: AsyncIterator[bytes], piece: int = PIECE) -> AsyncIterator[msgspec.Raw | ListPage]:
    """Yields the items, still as JSON, and at the end the page without them. Raises msgspec.DecodeError.

    Another layout of the JSON (white space, other first fields) is read correctly too, but needs memory for the whole
    answer.
    """
    head = b""
    rest = bytearray()
    wanted = piece
    async for chunk in chunks:
        rest += chunk
        if len(rest) < wanted:
            continue
        if not head:
            head = _take(rest, rest.find(_OPENING) + len(_OPENING)) if _OPENING in rest else b""
        cut = rest.rfind(_BETWEEN) + 1 if head else 0
        items = _complete(rest[:cut])
        if items is None:
            # Doubled, so that a long item is not decoded again with every chunk.
            wanted = 2 * len(rest)
            continue
        for item in items:
            yield item
        del rest[: cut + 1]
        wanted = piece
    page = msgspec.json.decode(head + rest, type=ListPage)
    for item in page.items or ():
        yield item
    page.items = None
    yield page


def _take(rest: bytearray, length: int) -> bytes:
    taken = bytes(rest[:length])
    del rest[:length]
    return taken


def _complete(piece: bytearray) -> list[msgspec.Raw] | None:
    """The items of the piece. None if it is empty, or ends within an item."""
    if not piece:
        return None
    try:
        return msgspec.json.decode(b"[" + piece + b"]", type=list[msgspec.Raw])
    except msgspec.DecodeError:
        return None
