"""Who may ask the kernel what it offers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nodenet.bpf import probe
from nodenet.errors import CannotRunError


@pytest.mark.parametrize(
    ("capabilities", "permitted"),
    [("0" * 16, False), (f"{1 << 39:016x}", True), (f"{1 << 21:016x}", True), (f"{1 << 12:016x}", False)],
)
def test_the_capability_decides(capabilities: str, permitted: bool) -> None:
    assert probe._permitted(f"Name:\tx\nCapEff:\t{capabilities}\n") is permitted


@pytest.mark.parametrize(
    ("capabilities", "permitted"), [(f"{1 << 39:016x}", False), (f"{1 << 38:016x}", True), (f"{1 << 21:016x}", True)]
)
def test_the_kernels_structs_need_a_capability_of_their_own(
    capabilities: str, permitted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "_KERNEL_BTF", tmp_path)
    lib = SimpleNamespace(libbpf_probe_bpf_helper=lambda *_: 1)
    assert probe._reads_kernel_structs(lib, f"CapEff:\t{capabilities}\n") is permitted


def test_not_permitted_is_told_from_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_permitted", lambda _: False)
    with pytest.raises(CannotRunError, match="not permitted to ask") as caught:
        probe.features()
    assert caught.value.hint == "run as root"


@pytest.mark.kernel
def test_without_btf_status_says_what_is_not_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "_KERNEL_BTF", tmp_path / "vmlinux")
    (found,) = (feature for feature in probe.features() if feature.name == probe.OFFLOAD)
    assert not found.available
    assert not found.needed
    assert "unfinished checksums of pods are not checked" in found.without
    probe.require([found])
