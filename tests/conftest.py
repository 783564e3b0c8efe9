"""Fixtures for everybody: what needs a kernel is skipped with the reason, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = Path("/var/cache/nodenet")


def pytest_configure() -> None:
    # A shell that starts the tests in the background has them ignore SIGINT, and what they start inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: real namespaces and eBPF")
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def bpf_cache() -> Path:
    """Where compiled objects are kept between runs (keyed by content, so never stale)."""
    return CACHE


@pytest.fixture(scope="module")
def bpffs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BPF file system of our own: the host's /sys/fs/bpf stays as it is."""
    path = tmp_path_factory.mktemp("bpffs")
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def netns() -> Iterator[str]:
    """A named network namespace with its loopback up; its name."""
    name = f"nntest-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def cgroup2_root() -> Path:
    """Where the cgroup v2 hierarchy is mounted. Raises LookupError where there is none."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return Path(mount)
    raise LookupError("no cgroup v2 hierarchy is mounted")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A throwaway cgroup v2 folder."""
    try:
        root = cgroup2_root()
    except LookupError as error:
        pytest.skip(str(error))
    path = root / f"nodenet-test-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()
