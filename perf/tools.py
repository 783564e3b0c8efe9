"""Runs other programs and measures their cost. Gives clear errors if one is missing or fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodenet.errors import CannotRunError

NETNS = Path("/run/netns")
# Seconds to wait for a killed tool, which may still be inside a long system call.
_LAST_PROCESS = 600.0
_PACKAGES = {
    "iptables-restore": "iptables",
    "iptables-legacy-restore": "iptables",
    "iptables-nft-restore": "iptables",
    "nft": "nftables",
    "ipvsadm": "ipvsadm",
    "ipset": "ipset",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "cc": "gcc",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall time, CPU time of user and kernel together (both in s), and the largest memory of any process (bytes)."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.rss_bytes, other.rss_bytes),
        )


class ToolTimeoutError(CannotRunError):
    """A program exceeded its time limit."""


def require(*names: str) -> None:
    """Raises CannotRunError that names all missing programs and their Debian packages."""
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        packages = sorted({_PACKAGES.get(name, name) for name in missing})
        raise CannotRunError(f"not installed: {', '.join(missing)}", f"apt-get install {' '.join(packages)}")


def inside(netns: str | None) -> list[str]:
    """The command prefix to run a program in a named namespace."""
    return ["nsenter", f"--net={NETNS / netns}"] if netns else []


def run(command: Sequence[str], text: str = "", netns: str | None = None, timeout: float = 600.0) -> None:
    """Run a program with `text` on stdin. Raises CannotRunError with the program's message."""
    _finish([*inside(netns), *command], command, text, timeout, None)


def measured(
    executable: str,
    command: Sequence[str],
    text: str,
    netns: str,
    timeout: float = 600.0,
    cgroup: Path | None = None,
    load: bool = False,
) -> Cost:
    """Like `run`, and returns the cost. `crr cost` measures it, so that the cost of a fork of this large process is not
    included. `cgroup`: where it runs. `load`: it may take long, mostly in the kernel."""
    environment = {**os.environ, "CRR_NETNS": str(NETNS / netns)}
    if cgroup:
        environment["CRR_CGROUP"] = str(cgroup)
    words = _finish([executable, "cost", *command], command, text, timeout, environment, load).split()
    return Cost(int(words[0]) / 1e9, int(words[1]) / 1e6, int(words[2]) * 1024)


def _finish(
    full: Sequence[str],
    command: Sequence[str],
    text: str,
    timeout: float,
    environment: Mapping[str, str] | None,
    load: bool = False,
) -> str:
    """The stdout of `full`. With an environment the command is `crr cost`, whose output ends with the exit status."""
    with subprocess.Popen(
        full,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as process:
        cpus = os.sched_getaffinity(0)
        try:
            if load:
                _anywhere()
            out, errors = process.communicate(text, timeout)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise ToolTimeoutError(f"{' '.join(command)}: not finished after {timeout:g} s") from error
        except BaseException:
            # Let this thread run on all CPUs to clean up: the killed tool may still occupy its own CPU.
            _anywhere()
            _kill(process)
            raise
        finally:
            if not isinstance(sys.exception(), KeyboardInterrupt):
                os.sched_setaffinity(0, cpus)
    code = int(out.split()[-1]) if environment and not process.returncode else process.returncode
    if code:
        words = " | ".join(errors.strip().splitlines()[:4])
        raise CannotRunError(f"{' '.join(command)}: exit status {code}: {words}")
    return out


def _anywhere() -> None:
    """Let only this thread run on all CPUs. A tool that loads a large table is in the kernel for many seconds. If the
    kernel does not preempt it, no other thread runs on that CPU, and neither time limit nor Ctrl-C would work."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children, and wait for their end. A tool that loads a large table leaves the kernel only
    after the load, and uses its namespace until then. The process may have ended already."""
    reported, started = False, time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        while time.monotonic() < started + _LAST_PROCESS:
            process.poll()  # reap it: the process group exists as long as it has a zombie
            os.killpg(process.pid, 0)
            if not reported and time.monotonic() > started + 1:
                reported = True
                print("killed, but still loading in the kernel: waiting for its end", file=sys.stderr, flush=True)
            time.sleep(0.02)


def output(command: Sequence[str], netns: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """The stdout of a short program. Raises CannotRunError with its message."""
    full = [*inside(netns), *command]
    env = {**os.environ, **environment} if environment else None
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=600, env=env)
    if done.returncode:
        words = " | ".join(done.stderr.strip().splitlines()[:4])
        raise CannotRunError(f"{' '.join(command)}: exit status {done.returncode}: {words}")
    return done.stdout
