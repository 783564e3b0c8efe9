"""Network namespaces by name or path: creates and deletes them, and runs code inside them.

Names are bind mounts in /run/netns, as with `ip netns`, so both show the same namespaces. All functions are synchronous
and need CAP_SYS_ADMIN.

A namespace is an attribute of a thread, not of a process. `call` runs longer code in a separate thread that ends
afterwards. `inside` moves the calling thread there and back, for a few system calls.
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
_TERMINATION = (signal.SIGTERM, signal.SIGINT)
_SELF = "/proc/thread-self/ns/net"


def path_of(target: str | Path) -> Path:
    """The path of a namespace given by name ("blue" is /run/netns/blue) or by path (anything with a slash)."""
    return Path(target) if "/" in str(target) else NETNS_DIR / target


def names() -> list[str]:
    """Names in /run/netns, sorted. A name may be left over from a removed namespace: see `is_namespace`."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def exists(target: str | Path) -> bool:
    """True if the path exists."""
    return path_of(target).exists()


def is_namespace(target: Target) -> bool:
    """True if the path is an existing network namespace (not just a file that remained after an unmount)."""
    try:
        with opened(target) as fd:
            # Only nsfs supports this ioctl (include/uapi/linux/nsfs.h: NS_GET_NSTYPE).
            return fcntl.ioctl(fd, 0xB703) == _CLONE_NEWNET
    except OSError:
        return False


def inode(target: Target | None = None) -> tuple[int, int]:
    """(device, inode) of a namespace: equal for two paths only if they are the same namespace. None: the current
    one."""
    stat = os.fstat(target) if isinstance(target, int) else Path(path_of(target) if target else _SELF).stat()
    return stat.st_dev, stat.st_ino


def create(name: str | Path, loopback: bool = True) -> Path:
    """Create a namespace that persists after the process ends, as `ip netns add` does, and return its path.

    `loopback` also brings `lo` up. Raises FileExistsError if the name exists; nothing is left after a failure.
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
    """Remove a named namespace; False if it does not exist. The kernel removes the namespace itself after its last
    process has ended."""
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
    """A file descriptor of a namespace (None: the current one). It is closed afterwards, unless `target` is a
    descriptor."""
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
    """Move the calling thread into the namespace while the block runs. For a few system calls: a separate thread
    (`call`) would be ten times as expensive. The block must not await, and must not start threads or processes.

    SIGTERM and SIGINT are blocked meanwhile: their handlers may raise, and the cleanup must not run in the wrong
    namespace. If the thread cannot return, the process exits (exit code 70), for the same reason.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATION)
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
    """Call a function in a thread inside the namespace, and return its result or raise its exception. Takes about
    0.1 ms."""

    def inside() -> _T:
        with opened(target) as fd:
            enter(fd)
        return function(*args, **kwargs)

    return _in_thread(inside)


def open_socket(target: Target | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that belongs to the namespace and can be used from anywhere. None: the current namespace."""
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
    """Move the calling thread into a namespace permanently. Raises OSError (EINVAL: not a namespace)."""
    with opened(target) as fd:
        if code := libc.setns(fd, _CLONE_NEWNET):
            raise OSError(code, os.strerror(code), str(target))


def _in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a function in a new thread, which ends afterwards, so that it may change its namespace."""
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

    # Not threading.Thread: its import costs 3 ms in a process that wires one pod, and its features are not needed here.
    over.acquire()
    _thread.start_new_thread(body, ())
    over.acquire()
    if errors:
        raise errors[0]
    return results[0]


def _unshare_and_bind(path: Path, loopback: bool) -> None:
    if code := libc.unshare(_CLONE_NEWNET):
        raise OSError(code, f"cannot create a network namespace: {os.strerror(code)}")
    if loopback:
        _loopback_up()
    _mount(_SELF, path, _MS_BIND)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _prepare_folder(folder: Path) -> None:
    """Make the folder a shared mount, so that deleting a namespace here also releases it in other mount namespaces.

    Under a lock: otherwise two processes could mount over each other and hide names.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if code := libc.mount(b"", os.fsencode(folder), _MS_SHARED | _MS_REC):
            # EINVAL: the folder is not a mount point yet.
            if code != errno.EINVAL:
                raise OSError(code, os.strerror(code), str(folder))
            _mount(folder, folder, _MS_BIND | _MS_REC)
            _mount("", folder, _MS_SHARED | _MS_REC)
    finally:
        os.close(fd)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    if code := libc.mount(os.fsencode(source), os.fsencode(target), flags):
        raise OSError(code, f"cannot mount: {os.strerror(code)}", str(target))
