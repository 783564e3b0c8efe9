"""Namespaces as iproute2 keeps them."""

from __future__ import annotations

import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from nodenet.link import netns

pytestmark = pytest.mark.kernel


def test_create_is_seen_by_iproute2_and_back() -> None:
    name = f"nntest-{uuid.uuid4().hex[:8]}"
    path = netns.create(name)
    try:
        assert name in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert name in netns.names()
        assert netns.is_namespace(name)
        assert netns.inode(name) != netns.inode()
        with pytest.raises(FileExistsError):
            netns.create(name)
        assert netns.is_namespace(name)
    finally:
        assert netns.delete(name)
    assert not path.exists()
    assert not netns.delete(name)


def test_calls_and_processes_run_inside_and_the_caller_stays_outside(two: tuple[str, str]) -> None:
    here = netns.inode()
    assert netns.call(two[0], netns.inode) == netns.inode(two[0])
    shown = netns.run(two[0], ["readlink", "/proc/self/ns/net"], capture_output=True, text=True).stdout
    assert shown.strip() == f"net:[{netns.inode(two[0])[1]}]"
    prefixed = subprocess.run(
        [*netns.exec_prefix(two[1]), "readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True
    )
    assert prefixed.stdout.strip() == f"net:[{netns.inode(two[1])[1]}]"
    assert netns.inode() == here
    with pytest.raises(ZeroDivisionError):
        netns.call(two[0], lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        netns.call("nntest-not-there", netns.inode)
    with pytest.raises(OSError, match="Invalid argument"):
        netns.call("/etc/hostname", netns.inode)
    assert netns.inode() == here


def test_a_namespace_without_its_mount_is_none(two: tuple[str, str], tmp_path: Path) -> None:
    leftover = tmp_path / "leftover"
    leftover.touch()
    assert not netns.is_namespace(leftover)
    assert not netns.is_namespace("/proc/self/ns/uts")
    assert netns.is_namespace("/proc/self/ns/net")


def test_many_threads_make_namespaces_at_once() -> None:
    names = [f"nntest-{uuid.uuid4().hex[:8]}" for _ in range(8)]
    threads = [threading.Thread(target=netns.create, args=(name,)) for name in names]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({netns.inode(name) for name in names}) == len(names)
    finally:
        for name in names:
            netns.delete(name)
