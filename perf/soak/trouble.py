"""The faults that the soak injects. Each one runs in its own thread until `stop` is set. Its errors are recorded."""

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
    """`count`: how often the fault was injected. `errors`: the errors of the thread."""

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
            except Exception:  # noqa: BLE001 - it is in the report, and the run fails
                self.errors.append(traceback.format_exc(limit=3))
                self.stop.wait(1)

    def once(self) -> None:
        raise NotImplementedError

    def note(self, what: str) -> None:
        """Record an action with its time, to find out what happened at the moment of a failure."""
        self.log.append(f"{datetime.now():%H:%M:%S.%f} {what}")

    def pause(self, low: float, high: float) -> None:
        self.stop.wait(self.rng.uniform(low, high))


class Flips(Trouble):
    """Changes a label of a client or a server between two values for which policy is the same."""

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
    """Creates batches of pods and force-deletes them, some before they have a network. After that an unrelated pod must
    become ready."""

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
        # During an outage the pod's agent has no API, so the time is measured only if there is none.
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
    """Makes the API unreachable for all agents for a while. Modes: packets are dropped, requests hang, connections are
    refused."""

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
    """Kills one node's agent with SIGKILL and starts it within 2 s, because the lab would restart it with growing
    backoff."""

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
    """Collects allowed packets and answers that agents report as dropped. They help to explain losses of a probe."""

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
            # The command ends if no agent answers. Start it again after a second.
            self._over.wait(1)

    def finish(self) -> None:
        """Call it after `stop` is set."""
        if self._process is not None:
            self._process.terminate()
        self.join(30)
