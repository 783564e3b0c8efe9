"""Measures the agent's engine with many Services on the kernel's maps: all from decoded objects, and one endpoint.

    python -m perf.services_scale [--services 10000 50000] [--backends 5] [--changes 300] [-o json]

The maps are those of the programs, in a BPF file system of their own. Nothing is attached. They are deleted at the end.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path

import click

from netpolicy.addresses import KeyIPv4
from nodenet.agent.datapath import Datapath
from nodenet.agent.memory import collect_rarely
from nodenet.compile import LocalNode
from nodenet.config import Config
from nodenet.engine import Engine
from nodenet.model import EndpointSlice, Node, ObjectRef, Protocol, Service, ServicePort, ServiceType, SliceEndpoint
from nodenet.reconcile.apply import Table
from nodenet.reconcile.grace import Grace, NoPrograms
from nodenet.store import Delta, Op, listings
from perf.node import own_mounts
from perf.nowhere import nowhere

NODE = "node1"
NAMESPACE = "default"
# No room is left over, so that the measured maps have the load of full ones.
_SPARE = 1000
_FIRST_SERVICE = int(IPv4Address("10.96.0.1"))
_FIRST_BACKEND = int(IPv4Address("10.128.0.1"))


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of wall and CPU time from decoded objects to maps, and milliseconds of one endpoint that changes."""

    services: int
    backends: int
    writes: int
    all_s: float
    all_cpu_s: float
    one_p50_ms: float
    one_p99_ms: float
    one_worst_ms: float


def service(number: int) -> Service:
    ports = (ServicePort("http", Protocol.TCP, 80),)
    ref = ObjectRef(NAMESPACE, f"service{number}")
    return Service(ref, ServiceType.CLUSTER_IP, (KeyIPv4(_FIRST_SERVICE + number),), ports)


def endpoint_slice(number: int, backends: int, port: int = 8080) -> EndpointSlice:
    first = _FIRST_BACKEND + number * backends
    endpoints = tuple(SliceEndpoint((KeyIPv4(first + step),), node_name="node2") for step in range(backends))
    name = f"service{number}"
    ports = (ServicePort("http", Protocol.TCP, port),)
    return EndpointSlice(ObjectRef(NAMESPACE, f"{name}-x"), ObjectRef(NAMESPACE, name), ports, endpoints)


def one_endpoint_moves(number: int, backends: int, turn: int) -> EndpointSlice:
    """Another address for the last endpoint, as when a pod is replaced."""
    known = endpoint_slice(number, backends)
    moved = SliceEndpoint((KeyIPv4(int(IPv4Address("10.250.0.1")) + turn),), node_name="node2")
    return EndpointSlice(known.ref, known.service, known.ports, (*known.endpoints[:-1], moved))


@contextmanager
def _maps(services: int, backends: int, cache: Path, *, real: bool) -> Iterator[tuple[dict[str, Table], Grace]]:
    if not real:
        yield nowhere(), NoPrograms()
        return
    with own_mounts() as folder:
        bpffs = folder / "bpf" / f"scale{services}"
        entries = services * (backends + 2) + _SPARE
        config = Config(NODE, bpffs=bpffs, cache_dir=cache, service_entries=entries, backend_entries=entries)
        datapath = Datapath(config)
        try:
            yield dict(datapath.tables), datapath.grace
        finally:
            datapath.close()
            shutil.rmtree(bpffs)


def measure(services: int, backends: int, changes: int, cache: Path, *, real: bool = True) -> Result:
    objects = [one for n in range(services) for one in (service(n), endpoint_slice(n, backends))]
    with _maps(services, backends, cache, real=real) as (tables, grace):
        engine = Engine(LocalNode(NODE), tables, grace)
        everything = listings([*objects, Node(NODE)])
        # As in the agent, which takes what existed at its start out of the garbage collector.
        gc.collect()
        gc.freeze()
        started, cpu = time.perf_counter(), time.process_time()
        engine.feed(*everything)
        writes = engine.run_once().writes.total()
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        del objects, everything
        gc.collect()
        gc.freeze()
        waits = []
        for turn in range(changes):
            changed = one_endpoint_moves(turn * 7919 % services, backends, turn)
            begun = time.perf_counter()
            engine.feed(Delta(Op.MODIFIED, changed))
            engine.run_once()
            waits.append(1000 * (time.perf_counter() - begun))
        gc.unfreeze()
    waits.sort()
    p50, p99, worst = waits[len(waits) // 2], waits[min(len(waits) - 1, int(0.99 * len(waits)))], waits[-1]
    return Result(
        services, backends, writes, round(took, 2), round(cpu, 2), round(p50, 2), round(p99, 2), round(worst, 2)
    )


@click.command()
@click.option("--services", "sizes", type=click.IntRange(1), multiple=True, default=(10_000, 50_000), show_default=True)
@click.option("--backends", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--changes", type=click.IntRange(1), default=300, show_default=True, help="Endpoints that change.")
@click.option("--no-maps", is_flag=True, help="Write nowhere, to measure only the user space.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("/var/cache/nodenet"), show_default=True)
@click.option("-o", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(sizes: tuple[int, ...], backends: int, changes: int, no_maps: bool, cache: Path, output: str) -> None:
    """Seconds from decoded objects to maps, and milliseconds of one changed endpoint."""
    collect_rarely()
    for size in sizes:
        result = asdict(measure(size, backends, changes, cache, real=not no_maps))
        if output == "json":
            click.echo(json.dumps(result))
        else:
            click.echo("  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
