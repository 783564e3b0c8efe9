"""Network namespaces by name or path: create, delete, and do something inside one.

Names live in /run/netns as bind mounts of the namespace, exactly as `ip netns` keeps them, so both see the same
ones. Everything here is synchronous and needs CAP_SYS_ADMIN.

A namespace belongs to a thread, not to a process. Code of any length runs inside one in a thread of its own, which ends
afterwards (`call`); a few system calls are made by the calling thread itself, which goes there and back (`inside`).
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from nodenet.link import libc

if TYPE_CHECKING:
    import subprocess

NETNS_DIR = Path("/run/netns")
# A name, a path, or an open file descriptor of a namespace.
Target = str | Path | int

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_ENDING = (signal.SIGTERM, signal.SIGINT)
_SELF = "/proc/thread-self/ns/net"


def path_of(target: str | Path) -> Path:
    """The path of a namespace given by name ("blue" is /run/netns/blue) or by path (anything with a slash)."""
    return Path(target) if "/" in str(target) else NETNS_DIR / target


def names() -> list[str]:
    """Names in /run/netns, sorted. A name may be a leftover whose namespace is gone: see `is_namespace`."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def exists(target: str | Path) -> bool:
    """Whether the path exists at all."""
    return path_of(target).exists()


def is_namespace(target: Target) -> bool:
    """Whether a living network namespace stands behind the path (a file left by an unmount does not count)."""
    try:
        with opened(target) as fd:
            # Only nsfs answers this request (include/uapi/linux/nsfs.h: NS_GET_NSTYPE).
            return fcntl.ioctl(fd, 0xB703) == _CLONE_NEWNET
    except OSError:
        return False


def inode(target: Target | None = None) -> tuple[int, int]:
    """(device, inode) of a namespace: equal for two paths exactly when they are the same one. None: the current one."""
    stat = os.fstat(target) if isinstance(target, int) else Path(path_of(target) if target else _SELF).stat()
    return stat.st_dev, stat.st_ino


def create(name: str | Path, loopback: bool = True) -> Path:
    """Make a namespace that outlives the process, as `ip netns add` does, and return its path.

    `loopback` also brings `lo` up. Raises FileExistsError when the name is taken; nothing is left after a failure.
    """
    path = path_of(name)
    _prepare_folder(path.parent)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        _in_thread(_unshare_and_bind, path, loopback)
    except BaseException:
        delete(path)
        raise
    return path


def delete(name: str | Path) -> bool:
    """Remove a named namespace; False when there was none. The kernel ends it when its last process is gone too."""
    path = path_of(name)
    # EINVAL: not a mount point, for example a file left by a crash.
    code = libc.umount2(os.fsencode(path), _MNT_DETACH)
    if code not in (0, errno.EINVAL, errno.ENOENT):
        raise OSError(code, os.strerror(code), str(path))
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def opened(target: Target | None) -> Iterator[int]:
    """A file descriptor of a namespace (None: the current one), closed afterwards unless it was given as one."""
    if isinstance(target, int):
        yield target
        return
    fd = os.open(path_of(target) if target else _SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def inside(target: Target) -> Iterator[None]:
    """The calling thread is in the namespace for as long as the block runs: for a few system calls, where a thread of
    their own (`call`) would cost ten times as much. Not for an await, nor for what starts threads or processes.

    Signals that end a process wait until it is back: their handlers may raise, and what cleans up after that must not
    do so in the wrong place. A thread that cannot come back ends its process (exit code 70), for the same reason.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with opened(None) as home:
            enter(target)
            try:
                yield
            finally:
                if code := libc.setns(home, _CLONE_NEWNET):
                    os.write(2, f"cannot return from network namespace {target}: {os.strerror(code)}\n".encode())
                    os._exit(os.EX_SOFTWARE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def call(target: Target, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in a thread that is inside the namespace; its result or exception comes back. About 0.1 ms."""

    def inside() -> _T:
        with opened(target) as fd:
            enter(fd)
        return function(*args, **kwargs)

    return _in_thread(inside)


def open_socket(target: Target | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that belongs to the namespace, usable from anywhere afterwards. None: the current namespace."""
    if target is None:
        return socket.socket(family, kind, protocol)
    with inside(target):
        return socket.socket(family, kind, protocol)


def popen(target: Target, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """subprocess.Popen inside the namespace, without a helper program or preexec_fn: the child inherits the namespace
    of the thread that forks it. /sys is not remounted, /proc/sys/net is the namespace's own."""
    import subprocess

    return call(target, lambda: subprocess.Popen(argv, **options))


def run(target: Target, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[Any]:
    """subprocess.run inside the namespace."""
    import subprocess

    check = options.pop("check", False)
    return call(target, lambda: subprocess.run(argv, check=check, **options))


def enter(target: Target) -> None:
    """Move the calling thread into a namespace for good. Raises OSError (EINVAL: the file is no namespace)."""
    with opened(target) as fd:
        if code := libc.setns(fd, _CLONE_NEWNET):
            raise OSError(code, os.strerror(code), str(target))


def _in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run in a thread that is thrown away: it may change its namespace."""
    results: list[_T] = []
    errors: list[BaseException] = []
    over = _thread.allocate_lock()

    def body() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            errors.append(error)
        finally:
            over.release()

    # Not threading.Thread: importing it costs a process that wires one pod 3 ms, and nobody needs to see this one.
    over.acquire()
    _thread.start_new_thread(body, ())
    over.acquire()
    if errors:
        raise errors[0]
    return results[0]


def _unshare_and_bind(path: Path, loopback: bool) -> None:
    if code := libc.unshare(_CLONE_NEWNET):
        raise OSError(code, f"cannot make a network namespace: {os.strerror(code)}")
    if loopback:
        _loopback_up()
    _mount(_SELF, path, _MS_BIND)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _prepare_folder(folder: Path) -> None:
    """Make the folder a shared mount, so that a namespace deleted here is let go in other mount namespaces too.

    Under a lock: two that did this at once would hide each other's names beneath a second mount.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if code := libc.mount(b"", os.fsencode(folder), _MS_SHARED | _MS_REC):
            if code != errno.EINVAL:
                raise OSError(code, os.strerror(code), str(folder))
            _mount(folder, folder, _MS_BIND | _MS_REC)
            _mount("", folder, _MS_SHARED | _MS_REC)
    finally:
        os.close(fd)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    if code := libc.mount(os.fsencode(source), os.fsencode(target), flags):
        raise OSError(code, f"cannot mount: {os.strerror(code)}", str(target))
