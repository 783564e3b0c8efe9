"""The steps of `lab up`: check, build, apply, wait. If one fails, everything is removed. Runs in the command's own
process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nodenet.cni import bundle, install
from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.lab import clocks, files, groups, process, ready, teardown
from nodenet.lab.client import LabClient
from nodenet.lab.files import LabFiles, LabState
from nodenet.link import cgroups

Say = Callable[[str], None]

# The agents use this cache too.
_CACHE = Path("/var/cache/nodenet")
_POLL = 0.1
# `up` fails if pods report a problem for this many seconds. It leaves time for another attempt.
_PROBLEM_SECONDS = 3.0


class _ReportedError(NodenetError):
    """An error that the daemon reported, with its exit code."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = code


def check_host() -> None:
    """Raises CannotRunError if this machine cannot run a lab: not root, or the kernel lacks a feature."""
    if os.geteuid() != 0:
        raise CannotRunError("a lab makes network namespaces and loads eBPF programs: it needs root", "use sudo")
    cgroups.mount_point()
    from nodenet.bpf import probe

    probe.require(probe.features())


def check_new(lab: str) -> None:
    """Raises BadInputError if a lab of that name exists or was not removed completely."""
    found = teardown.leftovers(lab)
    if found:
        state = "is running" if _runs(lab) else f"was not taken down: {found[0]} is left"
        raise BadInputError(f"lab {lab}: it exists already and {state}", f"nodenet lab down --name {lab}")


def _runs(lab: str) -> bool:
    try:
        return files.read_state(lab).alive
    except NodenetError:
        return False


@contextlib.contextmanager
def removed_on_failure(lab: str) -> Iterator[None]:
    """Remove the whole lab if the block fails or is interrupted (Ctrl-C, SIGTERM, SIGHUP)."""
    previous = {number: signal.signal(number, _terminated) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except BaseException:
        teardown.down(lab)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def start(state: LabState, say: Say, deadline: float, *, settable_clock: bool = False) -> LabClient:
    """Start the daemon and wait until nodes, API and agents are ready. `deadline` is a time of the monotonic clock.

    Raises the error that the daemon reports, or CannotRunError if it ends or is late. The caller removes the lab.
    """
    plan = state.plan
    teardown.remember_host()
    folder = LabFiles(plan.name)
    try:
        folder.folder.mkdir()
    except FileExistsError as error:
        raise BadInputError(f"lab {plan.name}: another `lab up` creates it at the moment") from error
    files.write_state(state)
    if settable_clock:
        clocks.install(_CACHE, folder.folder)
    control = cgroups.make(groups.lab_root(plan.name) / groups.CONTROL)
    read, write = os.pipe()
    with folder.log.open("ab") as output:
        daemon = subprocess.Popen(
            process.in_cgroup(control, [sys.executable, "-m", "nodenet.lab.daemon", plan.name, str(write)]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(write,),
            start_new_session=True,
            cwd="/",
        )
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as reports:
        # The daemon needs the plugin only for the first pod, so install it while the daemon starts.
        install_plugin(folder, say)
        for line in _lines(reports.fileno(), deadline):
            if "progress" in line:
                say(line["progress"])
            elif "error" in line:
                raise _ReportedError(line["error"], line["hint"], line["code"])
            else:
                return LabClient(plan.name)
    if time.monotonic() >= deadline:
        raise CannotRunError(f"lab {plan.name}: its agents are not ready in time", _last_line(folder.log))
    status = daemon.wait()
    raise CannotRunError(f"lab {plan.name}: its daemon ended with exit status {status}", _last_line(folder.log))


def install_plugin(lab: LabFiles, say: Say) -> None:
    """Install the same CNI executable as on a real node. Raises CannotRunError if it cannot be built."""
    built = bundle.build(_CACHE, lambda: say("CNI plugin: building, once for this version"))
    install.place(lab.plugins, built)


def wait_ready(client: LabClient, say: Say, deadline: float) -> ready.Progress:
    """Wait until all pods are ready that the API's objects ask for. Raises CannotRunError with the reason why a pod is
    not ready."""
    reported, problem_since = None, 0.0
    while True:
        workloads = [obj for kind in ready.WORKLOADS for obj in client.objects(kind)]
        now = ready.progress(client.objects("Pod"), workloads)
        if (now.ready, now.total) != reported and now.total:
            reported = (now.ready, now.total)
            say(f"pods: {now.ready} of {now.total} ready")
        if now.done:
            return now
        problem_since = (problem_since or time.monotonic()) if now.problems else 0.0
        if problem_since and time.monotonic() - problem_since > _PROBLEM_SECONDS:
            raise CannotRunError(
                now.problems[0], f"{len(now.problems)} pods cannot start" if len(now.problems) > 1 else ""
            )
        if time.monotonic() > deadline:
            raise CannotRunError(f"not ready in time: {', '.join(now.waiting[:5])}", "--timeout extends the limit")
        time.sleep(_POLL)


def _lines(fd: int, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield decoded JSON lines until end of file or the deadline."""
    buffer = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], left)[0]:
            return
        data = os.read(fd, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _last_line(log: Path) -> str:
    lines: Sequence[str] = log.read_text(errors="replace").strip().splitlines() if log.exists() else ()
    return lines[-1] if lines else ""
