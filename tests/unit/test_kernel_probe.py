"""Who may ask the kernel what it offers."""

from __future__ import annotations

import pytest

from nodenet.bpf import probe
from nodenet.errors import CannotRunError


@pytest.mark.parametrize(
    ("capabilities", "permitted"),
    [("0" * 16, False), (f"{1 << 39:016x}", True), (f"{1 << 21:016x}", True), (f"{1 << 12:016x}", False)],
)
def test_the_capability_decides(capabilities: str, permitted: bool) -> None:
    assert probe._permitted(f"Name:\tx\nCapEff:\t{capabilities}\n") is permitted


def test_not_permitted_is_told_from_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_permitted", lambda _: False)
    with pytest.raises(CannotRunError, match="not permitted to ask") as caught:
        probe.features()
    assert caught.value.hint == "run as root"
