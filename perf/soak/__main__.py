"""`python -m perf.soak`: injects faults into a lab of two nodes for an hour.

Exit status 1 if denied traffic passed, allowed traffic was lost, or a resource grew.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml

from nodenet.errors import CannotRunError, NodenetError
from nodenet.lab.client import LabClient
from nodenet.lab.staging import Staging
from perf import tools
from perf.soak import figures, world
from perf.soak.api import Api
from perf.soak.report import failures, text
from perf.soak.result import Result, Settings
from perf.soak.trouble import Churn, Drops, Flips, Kills, Outages, Trouble

NODENET = [sys.executable, "-m", "nodenet"]
_PROBE = Path(__file__).parent / "probe.py"
# After this many errors of one trouble the soak ends: the lab is broken, and further results would prove nothing.
_MOST_ERRORS = 10
# Seconds after the churn until everything must be as before.
_SETTLE = 180.0


@contextmanager
def a_lab(name: str) -> Iterator[Api]:
    """A lab with the soak's objects. It is always taken down at the end."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="nodenet-soak-") as manifest:
        yaml.safe_dump_all(world.start(), manifest)
        manifest.flush()
        try:
            options = ("--nodes", "2", "--ip-family", "dual", "--no-dns")
            _nodenet("lab", "up", "--name", name, *options, "-f", manifest.name)
            yield Api(Path(_nodenet("lab", "kubeconfig", "--name", name).strip()))
        finally:
            _nodenet("lab", "down", "--name", name)


def _nodenet(*words: str) -> str:
    done = subprocess.run([*NODENET, *words], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise CannotRunError(f"nodenet {' '.join(words[:2])}: {done.stdout.strip()} {done.stderr.strip()}")
    return done.stdout


class Probe(threading.Thread):
    """A process in a pod, and its latest counts."""

    def __init__(self, lab: str, pod: str, targets: Sequence[Any]) -> None:
        super().__init__(daemon=True, name=f"probe {pod}")
        self.pod = pod
        self.counts: dict[str, Any] = {}
        prefix = [*NODENET, "lab", "exec", "--name", lab, "-n", world.NAMESPACE, pod, "--"]
        command = [*prefix, sys.executable, "-I", "-S", str(_PROBE), json.dumps(targets)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.counts = json.loads(line)

    def finish(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self.join(10)


def targets(api: Api, kind: str) -> list[tuple[str, str, str, int, bool]]:
    """The targets of a client. A friend may reach the open ports and the Service but no closed port, a stranger
    nothing."""
    friendly = kind == "friend"
    found: list[tuple[str, str, str, int, bool]] = []
    pods = {entry["metadata"]["name"]: entry for entry in api.pods(world.NAMESPACE)}
    for name in world.servers():
        for entry in pods[name]["status"]["podIPs"]:
            address = entry["ip"]
            where = f"{name}/v{6 if ':' in address else 4}"
            found.append((f"tcp {where}", "tcp", address, world.OPEN["TCP"], friendly))
            found.append((f"udp {where}", "udp", address, world.OPEN["UDP"], friendly))
            found.append((f"closed tcp {where}", "tcp", address, world.CLOSED["TCP"], False))
            found.append((f"closed udp {where}", "udp", address, world.CLOSED["UDP"], False))
            if friendly:
                found.append((f"kept tcp {where}", "keep", address, world.OPEN["TCP"], True))
    service = api.service_ip(world.NAMESPACE, "server")
    found.append(("tcp service", "tcp", service, world.SERVICE["TCP"], friendly))
    found.append(("udp service", "udp", service, world.SERVICE["UDP"], friendly))
    return found


def soak(lab: str, settings: Settings, stop: threading.Event) -> Result:
    result = Result(settings)
    started = time.monotonic()
    with ExitStack() as stack:
        api = stack.enter_context(a_lab(lab))
        if stop.is_set():
            return result
        before = _steady(lab)
        probes = [Probe(lab, pod, targets(api, kind)) for pod, kind in world.clients()]
        for probe in probes:
            stack.callback(probe.process.kill)
            probe.start()
        over = threading.Event()
        staging = Staging(LabClient(lab))
        outages = Outages(over, settings.seed, staging, _around(settings.outage_every))
        churn = Churn(over, settings.seed, api, outages, settings.batch)
        kills = Kills(over, settings.seed, staging, _around(settings.kill_every))
        troubles: list[Trouble] = [Flips(over, settings.seed, api), churn, outages, kills]
        drops = Drops(over, NODENET, lab)
        stack.callback(drops.finish)
        stack.callback(over.set)
        drops.start()
        for trouble in troubles:
            trouble.start()
        _watch(lab, settings, result, probes, troubles, stop)
        over.set()
        for trouble in troubles:
            trouble.join(120)
        _relabel(api)
        drops.finish()
        result.drops = list(drops.lines)
        result.leftover = [] if stop.is_set() else _settled(lab, before)
        for probe in probes:
            if probe.process.poll() is not None:
                result.errors.append(f"the probe in {probe.pod} ended by itself")
            else:
                probe.finish()
            result.probes[probe.pod] = probe.counts
        result.errors += [f"{trouble.name}: {error}" for trouble in troubles for error in trouble.errors]
        result.errors += [f"{trouble.name} did not end" for trouble in troubles if trouble.is_alive()]
        result.troubles = {
            "flips": troubles[0].count,
            "batches": churn.count,
            "pods": churn.made,
            "readySeconds": [round(seconds, 3) for seconds in churn.ready_seconds],
            "late": churn.late,
            "slow": churn.slow,
            "outages": outages.count,
            "outageSeconds": round(outages.seconds, 1),
            "kills": kills.count,
            "log": sorted(line for trouble in troubles for line in trouble.log),
        }
    result.seconds = round(time.monotonic() - started, 1)
    return result


def _around(seconds: float) -> tuple[float, float]:
    return seconds / 2, seconds * 1.5


def _watch(
    lab: str,
    settings: Settings,
    result: Result,
    probes: Sequence[Probe],
    troubles: Sequence[Trouble],
    stop: threading.Event,
) -> None:
    """Collect figures every minute, or more often in short runs, until the time is over, the soak is stopped, or one
    trouble has too many errors."""
    started = time.monotonic()
    end = started + settings.minutes * 60
    every = min(60.0, settings.minutes * 60 / 20)
    while time.monotonic() < end:
        for node in world.NODES:
            result.figures.append(figures.take(NODENET, lab, node, started))
        bad = sum(counts["bad"] for probe in probes for counts in probe.counts.values())
        click.echo(f"[soak] {_line(result.figures[-1])}; wrong so far: {bad}", err=True)
        if stop.wait(min(every, max(end - time.monotonic(), 0))):
            return
        if any(len(trouble.errors) >= _MOST_ERRORS for trouble in troubles):
            return


def _line(entry: figures.Figures) -> str:
    return (
        f"{entry.at / 60:.0f} min: {entry.node}'s agent {entry.rss / 1024:.1f} MiB, {entry.descriptors} descriptors, "
        f"{entry.threads} threads; {entry.namespaces} namespaces, nn_ct {entry.maps.get('nn_ct', 0)}"
    )


def _relabel(api: Api) -> None:
    """Restore the initial labels, because the number of rules depends on them."""
    for name, kind in world.clients():
        api.label(world.NAMESPACE, name, "role", world.ROLES[kind][0])
    for name in world.servers():
        api.label(world.NAMESPACE, name, "tier", world.TIERS[0])


def _steady(lab: str) -> dict[str, int]:
    """The counts that must be the same after the churn: namespaces, namespace ids, entries of the compiled maps."""
    found: dict[str, int] = {}
    for node in world.NODES:
        entry = figures.take(NODENET, lab, node, time.monotonic())
        found |= {f"{node} {name}": entry.maps.get(name, 0) for name in figures.COMPILED}
        found |= {"namespaces": entry.namespaces, f"{node} nsids": entry.nsids}
    return found


def _settled(lab: str, before: dict[str, int]) -> list[str]:
    """Wait until all counts are as before. Returns those that are still different after _SETTLE seconds."""
    deadline = time.monotonic() + _SETTLE
    while (now := _steady(lab)) != before and time.monotonic() < deadline:
        time.sleep(2)
    return [f"{name}: {before[name]} before, {now[name]} after" for name in before if before[name] != now[name]]


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="How long the trouble lasts.")
@click.option("--seed", default=1, show_default=True, help="Of the trouble's random moments.")
@click.option("--batch", default=10, show_default=True, help="Pods that are made and deleted together.")
@click.option("--kill-every", default=25.0, show_default=True, help="Seconds between kills of an agent, on average.")
@click.option("--outage-every", default=90.0, show_default=True, help="Seconds between API outages, on average.")
@click.option("--mib-per-hour", default=4.0, show_default=True, help="What the agent's memory may grow after warm-up.")
@click.option("--name", default=f"soak{os.getpid()}", help="The lab's name.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write everything to this file.")
def main_command(
    minutes: float,
    seed: int,
    batch: int,
    kill_every: float,
    outage_every: float,
    mib_per_hour: float,
    name: str,
    path: Path | None,
) -> None:
    """Inject faults into a lab of two nodes: pods are created and force-deleted, labels change, the API is unreachable,
    an agent is killed."""
    tools.require("ip", "nsenter")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings(minutes, seed, batch, kill_every, outage_every, mib_per_hour)
    result = soak(name, settings, stop)
    found = failures(result)
    if path:
        path.write_text(json.dumps(asdict(result) | {"failures": found}, indent=1) + "\n")
    click.echo(text(result, found))
    if found or stop.is_set():
        sys.exit(1)


def main() -> None:
    try:
        main_command.main(prog_name="python -m perf.soak", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"soak: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
