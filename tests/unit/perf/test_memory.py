"""Kernel memory by the account of a cgroup: what is read of it, and the reasons why there is none."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from nodenet.errors import CannotRunError
from nodenet.link import cgroups
from perf import memory
from perf.modes import Ipvs, Mode, Nftables


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    monkeypatch.setattr(cgroups, "mount_point", lambda: tmp_path)
    return tmp_path


def fake(kernel_bytes: int | None, not_charged: str = "") -> Mode:
    return cast(Mode, type("Fake", (), {"kernel_bytes": lambda _: kernel_bytes, "not_charged": not_charged})())


def test_the_account_is_what_the_kernel_keeps_for_objects(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text(
        "anon 999\nkernel 9999\nkernel_stack 16\npercpu 5\nvmalloc 700\nslab_reclaimable 800\nslab_unreclaimable 60\n"
    )
    assert memory.charged(tmp_path) == 765


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cgroup.controllers", "has no memory controller"), ("cgroup.subtree_control", "does not hand the memory")],
)
def test_without_the_controller_there_is_a_reason(root: Path, name: str, reason: str) -> None:
    (root / name).write_text("cpu pids\n")
    with ExitStack() as stack, pytest.raises(CannotRunError, match=reason) as caught:
        memory.account(stack, fake(None))
    assert "--workloads memory" in caught.value.hint
    assert list(root.glob("nodenet-bench-*")) == []


def test_a_kernel_that_does_not_charge_nf_tables_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "stat", lambda _: {"slab_unreclaimable": 1, "percpu": 1})
    with ExitStack() as stack, pytest.raises(CannotRunError, match=r"before 5\.18"):
        memory.account(stack, fake(None))
    assert list(root.glob("nodenet-bench-*")) == []


def test_a_group_lives_as_long_as_its_stack(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "stat", lambda _: {"kernel": 1})
    with ExitStack() as stack:
        path = memory.account(stack, fake(None))
        assert path is not None
        assert path.is_dir()
    assert list(root.glob("nodenet-bench-*")) == []


def test_a_mode_that_reports_its_memory_needs_no_group_and_ipvs_has_none(root: Path) -> None:
    with ExitStack() as stack:
        assert memory.account(stack, fake(4096)) is None
        with pytest.raises(CannotRunError, match="does not charge IPVS"):
            memory.account(stack, fake(None, Ipvs.not_charged))
    assert Nftables.not_charged == ""
