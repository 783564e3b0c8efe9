"""Runs other programs: what they cost, and a clear sentence when one is missing or fails."""

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
# Seconds that a killed tool may stay in the kernel.
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
    """Wall time, CPU time of user and kernel together (s), and the largest memory any one process held (bytes)."""

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
    """A program did not finish in its time."""


def require(*names: str) -> None:
    """Raises CannotRunError that names every missing program and the Debian packages they are in."""
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        packages = sorted({_PACKAGES.get(name, name) for name in missing})
        raise CannotRunError(f"not installed: {', '.join(missing)}", f"apt-get install {' '.join(packages)}")


def inside(netns: str | None) -> list[str]:
    """The start of a command that runs in a named namespace."""
    return ["nsenter", f"--net={NETNS / netns}"] if netns else []


def run(command: Sequence[str], text: str = "", netns: str | None = None, timeout: float = 600.0) -> None:
    """Run to the end with `text` on stdin. Raises CannotRunError with the program's own words."""
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
    """The same, and what it took: measured by the load maker (`crr cost`), so that starting it from a large process is
    not part of it. `cgroup`: where it runs. `load`: it may take long, and most of that in the kernel."""
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
    """stdout of `full`. With an environment it is `crr cost`, whose last word is the exit status."""
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
            # What is to be removed now is removed from any CPU: the killed tool may still be busy on its own.
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
    """This thread alone may run on every CPU. A tool that loads a large table is in the kernel for many seconds, and a
    kernel that does not preempt lets nobody else run there: neither time limit nor Ctrl-C would be seen."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _kill(process: subprocess.Popen[str]) -> None:
    """With what it started, and wait for that: a tool that loads a large table leaves the kernel only when the load is
    through, and holds its namespace until then. It may be gone already."""
    told, started = False, time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        while time.monotonic() < started + _LAST_PROCESS:
            process.poll()  # the group exists as long as one of it is not waited for
            os.killpg(process.pid, 0)
            if not told and time.monotonic() > started + 1:
                told = True
                print("killed, but still loading in the kernel: waiting for its end", file=sys.stderr, flush=True)
            time.sleep(0.02)


def output(command: Sequence[str], netns: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a short program prints. Raises CannotRunError with its own words."""
    full = [*inside(netns), *command]
    env = {**os.environ, **environment} if environment else None
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=600, env=env)
    if done.returncode:
        words = " | ".join(done.stderr.strip().splitlines()[:4])
        raise CannotRunError(f"{' '.join(command)}: exit status {done.returncode}: {words}")
    return done.stdout
