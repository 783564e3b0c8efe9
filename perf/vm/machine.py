"""Runs one command in one virtual machine.

It uses QEMU's emulator (TCG), which needs no hardware virtualisation. With `icount` guest time counts instructions. At
the end the guest prints a sentinel that is unique to this run, with the exit status. Sockets are abstract, archives are
memory files, and both helper processes die with the thread that started them. So nothing can remain on this machine.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodenet.errors import CannotRunError, NodenetError
from perf.vm import image
from perf.vm.kernels import CACHE, Kernel, get_kernel

QEMU = "qemu-system-x86_64"
_VIRTIOFSD = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"))  # in Rust (Debian 13), in C (12)
_BUSYBOX = Path("/bin/busybox")
_PACKAGES = "apt-get install --no-install-recommends qemu-system-x86 busybox-static kmod, and on Debian 13 virtiofsd"
_INITIAL_MODULES = ("virtio_pci", "virtiofs", "overlay")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POLL = 0.25
_SHUTDOWN = 5
_TAIL = 25
# Count each instruction, and stop the clock while the guest is idle. The counts repeat within 0.3 %.
_ICOUNT = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")

# Processes switch only when one waits: SCHED_FIFO at one priority, inherited, and without the limit of 95 % of each
# second. A switch costs 20,000 instructions, and otherwise the scheduler would make it at unpredictable moments.
_ONE_AFTER_THE_OTHER = "echo -1 >/proc/sys/kernel/sched_rt_runtime_us; chrt -f -p 1 $$"


class VmError(NodenetError):
    """The virtual machine did not end normally: a panic, a timeout, or a helper process died. The message has its last
    output."""


@dataclass(frozen=True, slots=True)
class VmResult:
    """`output`: the stdout of the command. `console`: its stderr, mixed with kernel messages. `seconds`: host time from
    start to end."""

    kernel: Kernel
    status: int
    output: str
    console: str
    seconds: float


def cannot_run() -> str:
    """The reason why no virtual machine can run here, or "" (as far as that is known without trying)."""
    if os.geteuid() != 0:
        return "virtual machines need root: they share all files of this machine, of all owners"
    if os.uname().machine != "x86_64":
        return f"virtual machines here are for x86_64, this is {os.uname().machine}"
    missing = [name for name in (QEMU, "depmod", "setpriv") if not shutil.which(name)]
    missing += [] if _virtiofsd() else ["virtiofsd"]
    missing += [] if _static_busybox() else ["a static busybox"]
    return f"virtual machines need {', '.join(missing)} ({_PACKAGES})" if missing else ""


def run_in_vm(
    kernel: str | Kernel,
    command: Sequence[str] | str,
    *,
    icount: bool = False,
    timeout: float = 120,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    memory: str = "2G",
    stop: threading.Event | None = None,
    on_line: Callable[[str], None] | None = None,
    cache: Path = CACHE,
) -> VmResult:
    """Boot and run a command (words, or a line for /bin/sh) as root. Returns its exit status and output.

    The guest sees this machine's current files below its own writable layer (a tmpfs; /run starts empty). It has one
    CPU and no network device. With `icount` its clock counts instructions, 1 ns each, and no process preempts another.
    `cwd` is a folder of this machine (default: the current one). `timeout` is in seconds of this machine's clock, from
    the start of QEMU. `stop` ends the machine early if another thread sets it. `on_line` is called with each line of
    output at once. Raises CannotRunError if the machine cannot start here, and VmError if it does not end normally. A
    failing command is not an error; see the exit status.
    """
    if reason := cannot_run():
        raise CannotRunError(reason)
    found = get_kernel(kernel, cache) if isinstance(kernel, str) else kernel
    started = time.monotonic()
    token = secrets.token_hex(8)
    script = _script(command, token, Path(cwd or Path.cwd()), env or {}, icount)
    with _Machine(found, _initramfs(found, script), icount=icount, memory=memory) as machine:
        reader = _Reader(token, on_line)
        machine.pump(reader, started + timeout, stop)
    if reader.status is None:
        raise VmError(f"kernel {found.release}: {_reason(machine, reader, stop, timeout)}", reader.tail())
    return VmResult(found, reader.status, reader.output(), reader.console(), time.monotonic() - started)


def _reason(machine: _Machine, reader: _Reader, stop: threading.Event | None, timeout: float) -> str:
    if stop is not None and stop.is_set():
        return "stopped"
    if machine.timed_out:
        return f"no end in {timeout:g} s"
    return reader.panic() or "the virtual machine ended before its command did"


def _script(command: Sequence[str] | str, token: str, cwd: Path, env: Mapping[str, str], icount: bool = False) -> bytes:
    """The script of the first process in the new root. The command's stdout is the second serial line, its stderr the
    console."""
    line = command if isinstance(command, str) else shlex.join(command)
    settings = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **env}
    exports = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in settings.items())
    return f"""#!/bin/sh
{exports}
exec </dev/null >/dev/ttyS1 2>/dev/console
{_ONE_AFTER_THE_OTHER if icount else ""}
cd {shlex.quote(str(cwd))} && (
{line}
)
printf '\\n{token} %d\\n' $?
while :; do sleep 60; done
""".encode()


def _initramfs(kernel: Kernel, script: bytes) -> bytes:
    modules = image.module_files(kernel.modules, _INITIAL_MODULES)
    files = {
        "init": (Path(__file__).parent / "init.sh").read_bytes(),
        "bin/busybox": _BUSYBOX.read_bytes(),
        "command": script,
        "modules/order": "\n".join(name for name, _ in modules).encode(),
        "modules/folder": str(kernel.modules).encode(),
        **{f"modules/{name}.ko": data for name, data in modules},
    }
    return image.cpio(files, folders=("bin", "dev", "modules", "proc", "lower", "upper", "root"))


def _virtiofsd() -> Path | None:
    return next((path for path in _VIRTIOFSD if path.exists()), None)


def _static_busybox() -> bool:
    # A static ELF file names no dynamic linker.
    return _BUSYBOX.exists() and b"/ld-linux" not in _BUSYBOX.read_bytes()[:4096]


class _Machine:
    """The two processes of a virtual machine, and the pipes of its serial lines."""

    def __init__(self, kernel: Kernel, initramfs: bytes, *, icount: bool, memory: str) -> None:
        self.kernel, self.initramfs, self.icount, self.memory = kernel, initramfs, icount, memory
        self.timed_out = False
        self._stack = ExitStack()

    def __enter__(self) -> _Machine:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        with ExitStack() as ours:
            # The children inherit these. This process closes its copies, so that it sees end of file when a child ends.
            archive = ours.enter_context(_memory_file("initramfs", self.initramfs))
            listener = ours.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind("")  # autobind: an abstract address of its own
            listener.listen(1)
            client = ours.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(listener.getsockname())
            self.output, output = self._pipe(ours)
            self.console, console = self._pipe(ours)
            self._spawn(_virtiofsd_command(listener.fileno()), (listener.fileno(),), console)
            self.qemu = self._spawn(
                self._qemu_command(archive, client.fileno(), output, console),
                (archive, client.fileno(), output, console),
                console,
            )

    def _pipe(self, ours: ExitStack) -> tuple[int, int]:
        reading, writing = os.pipe()
        self._stack.callback(os.close, reading)
        ours.callback(os.close, writing)
        os.set_blocking(reading, False)
        return reading, writing

    def _spawn(self, command: Sequence[str], fds: tuple[int, ...], stderr: int) -> subprocess.Popen[bytes]:
        # --pdeathsig ends it also if this process is killed. In its own session it gets no Ctrl-C; this process handles
        # that.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
        self._stack.callback(_end, process)
        return process

    def _qemu_command(self, archive: int, files: int, output: int, console: int) -> list[str]:
        accelerator = _ICOUNT if self.icount else ("-accel", "tcg")
        return [
            *(QEMU, "-M", "q35,memory-backend=memory", "-cpu", "max", "-smp", "1", "-m", self.memory),
            *("-object", f"memory-backend-memfd,id=memory,size={self.memory},share=on", *accelerator),
            *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(self.kernel.vmlinux), "-initrd", f"/proc/self/fd/{archive}"),
            *("-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on"),
            *("-chardev", f"socket,id=files,fd={files}"),
            *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
            *("-chardev", f"file,id=console,path=/proc/self/fd/{console}", "-serial", "chardev:console"),
            *("-chardev", f"file,id=output,path=/proc/self/fd/{output}", "-serial", "chardev:output"),
        ]

    def pump(self, reader: _Reader, deadline: float, stop: threading.Event | None) -> None:
        """Read both serial lines until the sentinel, the end of QEMU, the deadline, or `stop`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ, reader.take_output)
            selector.register(self.console, selectors.EVENT_READ, reader.take_console)
            while reader.status is None and not (stop is not None and stop.is_set()):
                if time.monotonic() > deadline:
                    self.timed_out = True
                    return
                events = selector.select(_POLL)
                for key, _ in events:
                    key.data(_read(key.fd))
                # A reboot after a panic would end QEMU, but some kernels only stop.
                if reader.panic() or (not events and self.qemu.poll() is not None):
                    return


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


@contextmanager
def _memory_file(name: str, data: bytes) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
        yield fd
    finally:
        os.close(fd)


def _virtiofsd_command(fd: int) -> list[str]:
    path = _virtiofsd()
    assert path is not None  # cannot_run() asked
    if path.parent.name == "qemu":
        options = ["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err"]
    else:
        options = ["--shared-dir=/", "--cache=always", "--sandbox=chroot", "--log-level=error"]
    return [str(path), f"--fd={fd}", *options]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(_SHUTDOWN)


class _Reader:
    """The output of the two serial lines, and the exit status after the sentinel."""

    def __init__(self, token: str, on_line: Callable[[str], None] | None) -> None:
        self._sentinel = f"{token} ".encode()
        self._on_line = on_line
        self._output = bytearray()
        self._console = bytearray()
        self._next = 0  # start of the first line that was not processed
        self._empty = 0  # empty lines not reported yet: the last one is ours, before the sentinel
        self.status: int | None = None

    def take_output(self, data: bytes) -> None:
        self._output += data
        while (end := self._output.find(b"\n", self._next)) >= 0:
            line = bytes(self._output[self._next : end])
            if line.startswith(self._sentinel):
                self.status = int(line[len(self._sentinel) :])
                del self._output[max(self._next - 1, 0) :]
                return
            self._next = end + 1
            self._report_line(line)

    def _report_line(self, line: bytes) -> None:
        if self._on_line is None:
            return
        if not line:
            self._empty += 1
            return
        for _ in range(self._empty):
            self._on_line("")
        self._empty = 0
        self._on_line(line.decode(errors="replace"))

    def take_console(self, data: bytes) -> None:
        self._console += data

    def panic(self) -> str:
        """The kernel's panic message, or ""."""
        _, found, after = self._console.partition(b"Kernel panic - ")
        line, end, _ = after.partition(b"\n")
        return f"Kernel panic - {line.decode(errors='replace').rstrip()}" if found and end else ""

    def output(self) -> str:
        return self._output.decode(errors="replace")

    def console(self) -> str:
        return self._console.decode(errors="replace").replace("\r\n", "\n")

    def tail(self) -> str:
        """The last lines of both serial lines, for messages."""
        return "\n".join([*self.output().splitlines()[-_TAIL:], *self.console().splitlines()[-_TAIL:]])
