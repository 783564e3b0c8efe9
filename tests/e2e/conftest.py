"""One lab, shared by the tests that only look at it or put back what they change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.labs import SHOP, Lab, running


@pytest.fixture(scope="session")
def shop() -> Iterator[Lab]:
    """Two dual-stack nodes with examples/shop."""
    with running("shop", "--nodes", "2", "--ip-family", "dual", "-f", SHOP) as lab:
        yield lab
