"""Namespaces as iproute2 keeps them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from nodenet.link import libc, netns

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


class Ended(BaseException):
    """What a signal's handler raises."""


@pytest.mark.parametrize("moment", ["there", "back"])
def test_a_signal_on_the_way_there_or_back_leaves_nobody_behind(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The plugin alone ends by an exception that SIGTERM raises wherever it is; what follows undoes its work, on the
    node and not in the pod."""
    here, calls = netns.inode(), 0
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def setns(fd: int, kind: int) -> int:
        nonlocal calls
        calls += 1
        if moment == "back" and calls == 2:
            signal.raise_signal(signal.SIGTERM)
        code = original(fd, kind)
        if moment == "there" and calls == 1:
            signal.raise_signal(signal.SIGTERM)
        return code

    def ended(number: int, frame: object) -> None:
        raise Ended

    original = libc.setns
    monkeypatch.setattr(libc, "setns", setns)
    before = signal.signal(signal.SIGTERM, ended)
    try:
        with pytest.raises(Ended), netns.inside(two[0]):
            assert netns.inode() == netns.inode(two[0])
        assert netns.inode() == here
    finally:
        signal.signal(signal.SIGTERM, before)
        original(home, 0)
        os.close(home)
    # Not blocked since.
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
