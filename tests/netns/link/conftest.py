"""Namespaces for the link tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodenet.link import netns as namespaces


@pytest.fixture
def two() -> Iterator[tuple[str, str]]:
    """Two named namespaces with their loopback up."""
    with ExitStack() as stack:
        names = tuple(f"nntest-{uuid.uuid4().hex[:8]}" for _ in range(2))
        for name in names:
            namespaces.create(name)
            stack.callback(namespaces.delete, name)
        yield names[0], names[1]
