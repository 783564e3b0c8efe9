"""Measures one agent in a large cluster: `sudo python -m perf.scale [--pods 10000] [--services 10000] [--json FILE]`.

The cluster is an API server with objects of real size; the agent is the real one, with its maps. docs/scale.md shows
the figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from nodenet.errors import NodenetError
from perf import tools
from perf.node import own_cgroup, own_mounts
from perf.scale.node import Agent, agent
from perf.scale.objects import CHANGES, World

_KINDS = {"pods": "Pod", "nodes": "Node", "endpointslices": "EndpointSlice"}
_MIB = 1 << 20
# Seconds after the start until memory is read: unused pages go back to the kernel once a minute.
_SETTLED = 70.0
# Sizes of maps that hold 10,000 Services and pods. The defaults are smaller.
_LEAST_ENTRIES = 1 << 14


def run(folder: Path, world: World, options: dict[str, Any]) -> dict[str, Any]:
    """One start of the agent. `options`: streams, changes (events of each change), settled (seconds)."""
    entries = max(_LEAST_ENTRIES, 4 * world.services, 4 * world.pods)
    config = {
        "cgroup": str(options["cgroup"]),
        "service_entries": entries,
        "backend_entries": entries,
        "ipcache_entries": entries,
    }
    with agent(folder, world, config, options["streams"]) as found:
        seconds = found.wait_ready()
        started = found.usage()
        counters = found.counters()
        result: dict[str, Any] = {
            "world": asdict(world),
            "streams": options["streams"],
            "seconds": seconds,
            "started": asdict(started),
            "api": counters,
            "changes": {},
        }
        for what, (plural, _) in CHANGES.items() if options["changes"] else ():
            if world.counts()[plural]:
                result["changes"][what] = change(found, what, plural, options["changes"])
        time.sleep(options["settled"])
        result["settled"] = asdict(found.usage())
    return result


def change(found: Agent, what: str, plural: str, count: int) -> dict[str, float]:
    """CPU time of the agent and bytes of the API for one event of this change, without those of an idle second."""
    before = found.usage().cpu
    time.sleep(3.0)
    idle = (found.usage().cpu - before) / 3.0
    events, sent = found.events(_KINDS[plural]), found.counters()["sent"].get(plural, 0)
    cpu, began = found.usage().cpu, time.monotonic()
    found.change(what, count, 1)
    while found.events(_KINDS[plural]) < events + count:
        time.sleep(0.2)
    time.sleep(2.0)
    used = found.usage().cpu - cpu - idle * (time.monotonic() - began)
    return {
        "cpu_us": used / count * 1e6,
        "bytes": (found.counters()["sent"][plural] - sent) / count,
        "events": count,
    }


def report(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The figures as text."""
    head = f"{'run':28} {'ready s':>8} {'CPU s':>7} {'RSS MiB':>8} {'peak':>7} {'settled':>8} {'maps':>7} {'API MB':>8}"
    yield head
    for name, found in runs.items():
        started, settled = found["started"], found["settled"]
        yield (
            f"{name:28} {found['seconds']:8.1f} {started['cpu']:7.1f} {started['rss'] / _MIB:8.0f} "
            f"{settled['peak'] / _MIB:7.0f} {settled['rss'] / _MIB:8.0f} {started['maps'] / _MIB:7.1f} "
            f"{sum(found['api']['sent'].values()) / 1e6:8.1f}"
        )
    for name, found in runs.items():
        for what, cost in found["changes"].items():
            yield f"{name}: {what}: {cost['cpu_us']:.0f} us of CPU, {cost['bytes']:.0f} bytes for each event"
    empty, pods, services = (runs[name]["settled"]["rss"] for name in ("empty", "pods", "Services"))
    worlds = runs["pods"]["world"], runs["Services"]["world"]
    yield f"memory for each pod: {(pods - empty) / worlds[0]['pods'] / 1024:.2f} KiB"
    yield f"memory for each Service with its slice: {(services - empty) / worlds[1]['services'] / 1024:.2f} KiB"


@contextmanager
def _place() -> Iterator[tuple[Path, Path]]:
    with own_mounts() as folder, own_cgroup() as cgroup:
        yield folder, cgroup


@click.command()
@click.option("--pods", default=10_000, show_default=True)
@click.option("--services", default=10_000, show_default=True)
@click.option("--nodes", default=100, show_default=True)
@click.option("--changes", default=1000, show_default=True, help="Events of each kind of change.")
@click.option("--settled", default=_SETTLED, show_default=True, help="Seconds until memory is read again.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write all figures to this file.")
def main(pods: int, services: int, nodes: int, changes: int, settled: float, target: Path | None) -> None:
    """Measure an agent's memory, CPU and traffic of the API in a cluster of this size."""
    world = World(pods=pods, services=services, nodes=nodes)
    worlds = {
        "empty": replace(world, pods=0, services=0, policies=0),
        "pods": replace(world, services=0),
        "Services": replace(world, pods=0),
        "both": world,
    }
    tools.require("ip", "nsenter", "curl")
    runs = {}
    with _place() as (folder, cgroup):
        options = {"cgroup": cgroup, "streams": True, "changes": 0, "settled": settled}
        for name, size in worlds.items():
            print(f"[perf] {name}", file=sys.stderr, flush=True)
            runs[name] = run(folder, size, options | {"changes": changes if name == "both" else 0})
        print("[perf] both, lists in one piece", file=sys.stderr, flush=True)
        runs["both, lists in one piece"] = run(folder, world, options | {"streams": False})
    print("\n".join(report(runs)))
    if target:
        target.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except NodenetError as error:
        sys.exit(f"perf.scale: {error}")
