"""Measures the time from the API's acknowledgement of a change to the kernel's map, with a real agent in its own lab.

    python -m perf.change_latency [--services 2000] [--rate 50] [--seconds 60] [--resync 60] [-o json]

A change sets another port in the only endpoint of an EndpointSlice. It is visible when slot 1 of the Service's frontend
points to a backend with that port. Changes are sent at fixed times, so a slow one does not delay the next.
The lab is removed at the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import click

from nodenet.abi import U32, FrontendKey
from nodenet.bpf.tables import BpfTable
from nodenet.lab.apiserver.http_client import HttpObjects
from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.client import LabClient
from nodenet.lab.files import LabFiles
from nodenet.model import IPAddress, Protocol

NODE = "node1"
NAMESPACE = "default"
PORT = 80
_NODENET = (sys.executable, "-c", "from nodenet.cli.main import main; main()")
_FIRST_BACKEND = int(IPv4Address("10.200.0.1"))
_SEED = 1
# Seconds between two reads of the map while it waits for a change. This is the error of the figures.
_LOOK = 0.0005
# A change that is not visible after this many seconds is an error.
_LOST = 30.0


@dataclass(frozen=True, slots=True)
class Result:
    """Percentiles of the time from the API's acknowledgement of a change to the kernel's map, and the agent's resources
    and runs during the measurement.

    `cpu_percent`: of one core. `rss_mb`: at the end. `drift`: since the agent's start.
    """

    services: int
    changes: int
    seconds: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_percent: float
    rss_mb: float
    runs: int
    # Complete comparisons of all maps during the measurement. None: the agent does not count them.
    compared: int | None
    drift: int
    # Percent of one core while nothing changes, for the comparison and the rest of the agent.
    idle_cpu_percent: float


@dataclass(slots=True)
class _Change:
    """One acknowledged change. The watcher's thread sets `seen`."""

    key: FrontendKey
    port: int
    acknowledged: float
    seen: float = 0.0


class _Watcher:
    """Reads the maps until it has seen all changes. It never sees a change that the next one of the same Service has
    replaced before the next read."""

    def __init__(self, maps: Path) -> None:
        self._frontends = BpfTable("nn_frontend", maps / "nn_frontend")
        self._backends = BpfTable("nn_backend", maps / "nn_backend")
        self._waiting: list[_Change] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def add(self, change: _Change) -> None:
        with self._lock:
            self._waiting.append(change)

    def idle(self) -> bool:
        with self._lock:
            return not self._waiting

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._frontends.close()
        self._backends.close()

    def visible(self, key: FrontendKey, port: int) -> bool:
        slot = self._frontends.get(key)
        backend = None if slot is None else self._backends.get(U32(slot.backend_id))
        return backend is not None and backend.port == port

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            with self._lock:
                waiting = list(self._waiting)
            for change in waiting:
                if self.visible(change.key, change.port):
                    change.seen = time.monotonic()
                    with self._lock:
                        self._waiting.remove(change)


@contextmanager
def _lab(name: str, resync: float) -> Iterator[LabClient]:
    """A lab of one node without pods."""
    command = [*_NODENET, "lab"]
    settings = ["--no-dns", "--agent-set", f"resync_seconds={resync}"]
    subprocess.run([*command, "up", "--name", name, *settings], check=True, stdout=subprocess.DEVNULL, timeout=180)
    try:
        yield LabClient(name)
    finally:
        subprocess.run([*command, "down", "--name", name], check=True, stdout=subprocess.DEVNULL, timeout=120)


def _await(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise click.ClickException(f"nothing happened within {seconds:g} s")
        time.sleep(0.02)


def _create(api: HttpObjects, count: int) -> list[tuple[IPAddress, dict[str, Any]]]:
    """Create Services with one EndpointSlice each. Returns (ClusterIP, EndpointSlice from the API)."""
    made = []
    for number in range(count):
        meta = {"name": f"bench{number}", "namespace": NAMESPACE}
        ports = [{"name": "http", "port": PORT, "targetPort": 9000}]
        service = api.create(
            BY_KIND["Service"], {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}}
        )
        slice_ = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "labels": {"kubernetes.io/service-name": meta["name"]}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 9000, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": [str(IPv4Address(_FIRST_BACKEND + number))], "conditions": {"ready": True}},
            ],
        }
        made.append((ip_address(service["spec"]["clusterIP"]), api.create(BY_KIND["EndpointSlice"], slice_)))
    return made


def _key(address: IPAddress) -> FrontendKey:
    return FrontendKey(address, PORT, int(Protocol.TCP), 1)


def _send(
    api: HttpObjects, made: list[tuple[IPAddress, dict[str, Any]]], watcher: _Watcher, rate: float, seconds: float
) -> list[_Change]:
    """Change random EndpointSlices at fixed times."""
    chance = random.Random(_SEED)
    sent = []
    started = time.monotonic()
    # Change a Service again only after all others. The agent merges changes that arrive before its next run, so the
    # watcher would never see the earlier of two quick changes.
    order: list[int] = []
    for turn in range(int(rate * seconds)):
        time.sleep(max(0.0, started + turn / rate - time.monotonic()))
        order = order or chance.sample(range(len(made)), len(made))
        index = order.pop()
        address, slice_ = made[index]
        port = 10_000 + turn
        slice_["ports"][0]["port"] = port
        made[index] = (address, api.update(BY_KIND["EndpointSlice"], slice_))
        change = _Change(_key(address), port, time.monotonic())
        sent.append(change)
        watcher.add(change)
    _await(watcher.idle, _LOST)
    return sent


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def _reconcile(name: str) -> dict[str, Any]:
    command = [*_NODENET, "status", "--lab", name, "--node", NODE, "-o", "json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout)
    found = answer[0] if isinstance(answer, list) else answer
    result: dict[str, Any] = found["reconcile"]
    return result


def measure(name: str, services: int, rate: float, seconds: float, resync: float, idle: float) -> Result:
    with _lab(name, resync) as client:
        api = client.writer()
        made = _create(api, services)
        watcher = _Watcher(LabFiles(name).node(NODE) / "bpf" / "maps")
        try:
            _await(lambda: all(watcher.visible(_key(address), 9000) for address, _ in made), 60)
            pid = client.control("GET", "/status")["agents"][0]["pid"]
            before, used = _reconcile(name), _cpu(pid)
            time.sleep(idle)
            idle_used = _cpu(pid) - used
            used, started = _cpu(pid), time.monotonic()
            sent = _send(api, made, watcher, rate, seconds)
            took, used = time.monotonic() - started, _cpu(pid) - used
            after = _reconcile(name)
        finally:
            watcher.close()
        # A change may be visible before its acknowledgement is read.
        waits = sorted(1000 * max(0.0, change.seen - change.acknowledged) for change in sent)
        return Result(
            services,
            len(waits),
            round(took, 1),
            round(waits[len(waits) // 2], 2),
            round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 2),
            round(waits[-1], 2),
            round(100 * used / took, 1),
            round(_rss(pid), 1),
            after["runs"] - before["runs"],
            after["compared"] - before["compared"] if "compared" in after else None,
            after["drift"],
            round(100 * idle_used / idle, 1),
        )


@click.command()
@click.option("--services", type=click.IntRange(1, 5000), default=2000, show_default=True)
@click.option("--rate", type=click.FloatRange(0.1, 200), default=50.0, show_default=True, help="Changes a second.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=60.0, show_default=True)
@click.option("--resync", type=click.FloatRange(1), default=60.0, show_default=True, help="The agent's resync_seconds.")
@click.option("--idle", type=click.FloatRange(1, 300), default=10.0, show_default=True, help="Seconds without changes.")
@click.option("--lab", "name", default="latency", show_default=True, help="Name of the lab that is made.")
@click.option("-o", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(services: int, rate: float, seconds: float, resync: float, idle: float, name: str, output: str) -> None:
    """Milliseconds from the API's acknowledgement to the map, and the agent's CPU share."""
    # Turn SIGTERM into an exception, so that the lab is removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    result = asdict(measure(name, services, rate, seconds, resync, idle))
    if output == "json":
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        click.echo(f"{key:<18}{value!s:>10}")


if __name__ == "__main__":
    main()
