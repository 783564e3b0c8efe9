"""Wall clocks that a test can set, one for each node's agent. An LD_PRELOAD library (clock.c) implements them.

Only labs started with --settable-clock have them. The machine's own clock is never changed.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nodenet.cni.bundle import c_compiler
from nodenet.errors import BadInputError, CannotRunError

_SOURCE = Path(__file__).with_name("clock.c")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
_TIMEOUT = 60
# struct clock_file: a count, a reserved number, then STEPS times (since, offset). All 64 bits, nanoseconds.
_HEAD, _STEP = struct.Struct("=qq"), struct.Struct("=qq")
STEPS = 255
# CLOCK_REALTIME_COARSE
_FILE_CLOCK = 5
_NS = 10**9
# time_t and the 64-bit nanoseconds of the library reach to the year 2262.
_FURTHEST = 100 * 365 * 86400


def library(folder: Path) -> Path:
    """The path of the lab's copy of the library, which exists if the clocks are settable. `folder` is the lab's."""
    return folder / "clock.so"


def install(cache: Path, folder: Path) -> None:
    """Build the library unless it is in the cache, and copy it to the lab's folder. Raises CannotRunError."""
    key = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:12]
    built = cache / f"clock-{key}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".clock-") as name:
            draft = Path(name) / built.name
            command = [c_compiler(), *_FLAGS, "-o", str(draft), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode:
                raise CannotRunError(f"{_SOURCE.name} does not compile: {done.stderr.strip()}")
            draft.rename(built)
    shutil.copy(built, library(folder))


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one node. `lab` and `node` are folders. The file survives a reboot of the node, like a hardware
    clock."""

    lab: Path
    node: Path

    @property
    def path(self) -> Path:
        return self.node / "clock"

    @property
    def settable(self) -> bool:
        return library(self.lab).exists()

    def environment(self) -> dict[str, str]:
        """The environment variables for a process that uses this clock. Creates the file."""
        if not self.settable:
            return {}
        if not self.path.exists():
            self.path.write_bytes(bytes(_HEAD.size + STEPS * _STEP.size))
        return {"LD_PRELOAD": str(library(self.lab)), "NODENET_CLOCK": str(self.path)}

    def offset(self) -> float:
        """Seconds by which it is ahead of the machine's clock; negative if it is behind."""
        steps = self._steps() if self.path.exists() else []
        return steps[-1][1] / _NS if steps else 0.0

    def step(self, seconds: float) -> None:
        """Move the clock forward by `seconds`, or back if negative. Raises BadInputError."""
        if not self.settable:
            raise BadInputError("this lab's clocks cannot be set", "start it with: nodenet lab up --settable-clock")
        self.environment()
        steps = self._steps()
        wanted = (steps[-1][1] if steps else 0) + round(seconds * _NS)
        if abs(wanted) > _FURTHEST * _NS or time.time_ns() + wanted < 0:
            raise BadInputError(f"clock: expected a time after 1970, at most 100 years from now, got {seconds:+g} s")
        # The kernel takes file times from the coarse clock. Use the same clock here, so that a file written after
        # this step never has an earlier time than the step.
        since = time.clock_gettime_ns(_FILE_CLOCK)
        # If there are too many steps, drop the oldest: only the times of old files depend on it.
        steps = [*steps[-(STEPS - 1) :], (since, wanted)]
        with self.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            for index, step in enumerate(steps):
                _STEP.pack_into(mapped, _HEAD.size + index * _STEP.size, *step)
            _HEAD.pack_into(mapped, 0, len(steps), 0)

    def _steps(self) -> list[tuple[int, int]]:
        data = self.path.read_bytes()
        (count, _) = _HEAD.unpack_from(data)
        return list(_STEP.iter_unpack(data[_HEAD.size : _HEAD.size + count * _STEP.size]))
