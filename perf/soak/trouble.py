"""What is done to the lab. Each trouble is a thread of its own until `stop` is set; what it raises is kept."""

from __future__ import annotations

import random
import subprocess
import threading
import time
import traceback
from collections import deque
from datetime import datetime

from nodenet.lab.api_trouble import Mode
from nodenet.lab.staging import Staging
from perf.soak import world
from perf.soak.api import Api

_OUTAGES = (Mode.BLACKHOLE, Mode.HANG, Mode.AWAY)
_READY_PATIENCE = 60.0
_SLOW, _NOTES = 5.0, 20
_LOG = 20_000


class Trouble(threading.Thread):
    """`count` says how often it was done; `errors` what ended or disturbed it."""

    def __init__(self, stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True, name=type(self).__name__)
        self.stop = stop
        self.rng = random.Random(f"{seed}{self.name}")
        self.count = 0
        self.errors: list[str] = []
        self.log: deque[str] = deque(maxlen=_LOG)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.once()
                self.count += 1
            except Exception:  # noqa: BLE001 - told in the report, and the run fails
                self.errors.append(traceback.format_exc(limit=3))
                self.stop.wait(1)

    def once(self) -> None:
        raise NotImplementedError

    def note(self, what: str) -> None:
        """For whoever asks what was done at the moment of a failure."""
        self.log.append(f"{datetime.now():%H:%M:%S.%f} {what}")

    def pause(self, low: float, high: float) -> None:
        self.stop.wait(self.rng.uniform(low, high))


class Flips(Trouble):
    """A label of a probe or of a server changes between two values that mean the same to policy."""

    def __init__(self, stop: threading.Event, seed: int, api: Api) -> None:
        super().__init__(stop, seed)
        self._api = api

    def once(self) -> None:
        if self.rng.random() < 0.7:
            name, kind = self.rng.choice(world.clients())
            label, value = "role", self.rng.choice(world.ROLES[kind])
        else:
            name, label, value = self.rng.choice(world.servers()), "tier", self.rng.choice(world.TIERS)
        self._api.label(world.NAMESPACE, name, label, value)
        self.note(f"{name} {label}={value}")
        self.pause(0.1, 1.0)


class Churn(Trouble):
    """Batches of pods, made and deleted by force, some before they have a network. Then an unrelated pod must come."""

    def __init__(self, stop: threading.Event, seed: int, api: Api, outages: Outages, size: int) -> None:
        super().__init__(stop, seed)
        self._api, self._outages, self._size = api, outages, size
        self.made = 0
        self.ready_seconds: list[float] = []
        self.late: list[str] = []
        self.slow: list[str] = []

    def once(self) -> None:
        objects = world.batch(self.count, self._size)
        self.note(f"batch {self.count}")
        for entry in objects:
            self._api.create(entry)
        self.made += self._size
        self.pause(*self.rng.choice(((0.0, 0.3), (0.3, 2.0), (3.0, 8.0))))
        self.note(f"batch {self.count} deleted")
        for entry in reversed(objects):
            self._api.delete(entry)
        self._mark(world.marker(self.count))
        self.pause(0.0, 2.0)

    def _mark(self, marker: world.Object) -> None:
        name = marker["metadata"]["name"]
        # The agent that makes it may have no API.
        without_api, outages = self._outages.under_way, self._outages.count_begun
        started = time.monotonic()
        self._api.create(marker)
        self.made += 1
        while not self._api.is_ready(world.CHURN, name):
            if time.monotonic() - started > _READY_PATIENCE:
                self.late.append(f"{time.strftime('%H:%M:%S')} {name} was not Ready in {_READY_PATIENCE:g} s")
                break
            if self.stop.wait(0.05):
                break
        else:
            took = time.monotonic() - started
            if not without_api and outages == self._outages.count_begun:
                self.ready_seconds.append(took)
                if took > _SLOW and len(self.slow) < _NOTES:
                    since = started - self._outages.ended
                    self.slow.append(
                        f"{name} was Ready after {took:.1f} s; the last outage ended {since:.1f} s before it"
                    )
        self._api.delete(marker)


class Outages(Trouble):
    """No agent reaches the API for a while. How that looks differs: packets vanish, nothing answers, nobody listens."""

    def __init__(self, stop: threading.Event, seed: int, staging: Staging, pauses: tuple[float, float]) -> None:
        super().__init__(stop, seed)
        self._staging, self._pauses = staging, pauses
        self.count_begun = 0
        self.under_way = False
        self.ended = time.monotonic()
        self.seconds = 0.0

    def once(self) -> None:
        self.pause(*self._pauses)
        if self.stop.is_set():
            return
        started = time.monotonic()
        mode = self.rng.choice(_OUTAGES)
        self.count_begun += 1
        self.under_way = True
        self.note(f"outage begins: {mode}")
        try:
            with self._staging.api(mode):
                self.pause(5, 25)
        finally:
            self.under_way = False
            self.note("outage ends")
            self.ended = time.monotonic()
            self.seconds += time.monotonic() - started


class Kills(Trouble):
    """kill -9 of one node's agent; the lab starts it again, later and later, so it is started at once instead."""

    def __init__(self, stop: threading.Event, seed: int, staging: Staging, pauses: tuple[float, float]) -> None:
        super().__init__(stop, seed)
        self._staging, self._pauses = staging, pauses

    def once(self) -> None:
        self.pause(*self._pauses)
        if self.stop.is_set():
            return
        for verb in ("kill", "start"):
            self.note(verb)
            self._staging.agent(verb, [world.KILLED])
            self.pause(0.0, 2.0)


class Drops(threading.Thread):
    """Allowed packets and answers that the agents report as dropped: a hint when a probe lost something."""

    def __init__(self, stop: threading.Event, nodenet: list[str], lab: str) -> None:
        super().__init__(daemon=True, name="Drops")
        ports = [word for port in world.OPEN.values() for word in ("--port", str(port))]
        wanted = ["--verdict", "DROPPED", "--label", "app=friend", *ports, "--all-namespaces", "--follow"]
        self._command = [*nodenet, "observe", "--lab", lab, *wanted]
        self._over = stop
        self._process: subprocess.Popen[str] | None = None
        self.lines: deque[str] = deque(maxlen=_LOG)

    def run(self) -> None:
        while not self._over.is_set():
            with subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as process:
                self._process = process
                assert process.stdout is not None
                self.lines.extend(line.rstrip() for line in process.stdout)
            # It ends when no agent answers.
            self._over.wait(1)

    def finish(self) -> None:
        """Once `stop` is set."""
        if self._process is not None:
            self._process.terminate()
        self.join(30)
