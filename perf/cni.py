#!/usr/bin/env python3
"""Measures a pod start: ADD and DEL of the installed plugin, with and without an agent, and of Debian's bridge plugin
with host-local. The three take turns, so that the machine's noise affects all of them equally. Every figure includes
the runtime's side of the call: to start a process, pass its configuration and wait for it.

The agent is that of a lab, with real maps and programs. The pods have no Kubernetes names, so the API is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from nodenet.cni.conflist import Options
from nodenet.cni.install import install
from nodenet.errors import CannotRunError
from nodenet.lab import names
from nodenet.link import netns
from perf import stats
from perf.results import Result

REFERENCE = Path("/usr/lib/cni")
CACHE = Path("/var/cache/nodenet")
LEASES = (0, 2000, 10000)
BURST = 100
# One address of 10.200.0.0/16 per lease, after the gateway.
_FIRST = int(IPv4Address("10.200.0.2"))
# Seconds to wait after a DEL: the kernel removes the pod's namespace in the background and holds a lock that every call
# here needs.
SETTLE_SECONDS = 0.1
AGENT, ALONE, PEER = "agent", "alone", "bridge + host-local"
# The targets: ratio of the median to the reference's, by mode, metric and number of leases.
TARGETS = {(AGENT, "add", 0): 0.5, (AGENT, "add", 10000): 0.1, (ALONE, "add", 0): 3.0}


@dataclass(frozen=True, slots=True)
class Way:
    """One plugin to measure: executable, namespace of the node, configuration and folder of the leases."""

    name: str
    program: Path
    node: str
    conf: bytes
    leases: Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of calls of each verb (per plugin and number of leases), and of bursts."""

    rounds: int = 20
    bursts: int = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Sizes().rounds, help="calls of each verb (default %(default)s)")
    parser.add_argument("--bursts", type=int, default=Sizes().bursts, help=f"bursts of {BURST} (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    try:
        found = run(lambda text: print(f"[cni] {text}", file=sys.stderr), Sizes(arguments.rounds, arguments.bursts))
    except CannotRunError as error:
        print(f"perf.cni: {error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return 3
    rows = [row.as_json() for row in found]
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['metric']:10} {row['leases']:6} leases  {row['mode']:20} p50 {row['p50']:8.1f} ms  "
            f"p99 {row['p99']:8.1f} ms  the reference's: p50 x{row['ratio_to_reference']:.2f}  "
            f"p99 x{row['p99_ratio_to_reference']:.2f}"
        )
    for (mode, metric, leases), most in TARGETS.items():
        got = next(r for r in rows if (r["mode"], r["metric"], r["leases"]) == (mode, metric, leases))
        verdict = "met" if got["ratio_to_reference"] <= most else "MISSED"
        print(f"{mode}, {metric} at {leases} leases: x{got['ratio_to_reference']:.2f}, target x{most}: {verdict}")
    return 0


def run(progress: Callable[[str], None], sizes: Sizes | None = None) -> list[Result]:
    """Measure everything. Raises CannotRunError if this machine cannot do that."""
    sizes = sizes or Sizes()
    _check()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nncni")))
        install(folder / "bin", folder / "net.d", Options(("10.200.0.0/16",)), CACHE)
        lab = stack.enter_context(_lab(f"cni{os.getpid()}"))
        ways = [
            _way(AGENT, folder, names.node_netns(lab, "node1"), str(names.node_dir(lab, "node1") / "cni.sock")),
            _way(ALONE, folder, stack.enter_context(_node("alone")), str(folder / "nobody.sock")),
            _way(PEER, folder, stack.enter_context(_node("peer")), ""),
        ]
        found: list[Result] = []
        for count in LEASES:
            progress(f"{count} leases, {sizes.rounds} rounds")
            for way in ways:
                _fill(way, count)
            found += _rounds(ways, count, sizes.rounds)
        for way in ways:
            _fill(way, 0)
        progress(f"{sizes.bursts} bursts of {BURST} ADDs at once")
        return found + _bursts(ways, sizes.bursts)


def _check() -> None:
    if os.geteuid() != 0:
        raise CannotRunError("needs root: it makes network namespaces")
    if not (REFERENCE / "bridge").exists():
        raise CannotRunError(f"{REFERENCE}/bridge is missing", "apt-get install containernetworking-plugins")


@contextmanager
def _lab(name: str) -> Iterator[str]:
    command = [sys.executable, "-m", "nodenet", "lab"]
    try:
        subprocess.run([*command, "up", "--name", name, "--no-dns"], check=True, stdout=subprocess.DEVNULL, timeout=120)
        yield name
    finally:
        subprocess.run([*command, "down", "--name", name], check=True, stdout=subprocess.DEVNULL, timeout=120)


@contextmanager
def _node(name: str) -> Iterator[str]:
    namespace = f"nncni{os.getpid()}{name}"
    netns.create(namespace)
    try:
        yield namespace
    finally:
        netns.delete(namespace)


def _way(name: str, folder: Path, node: str, agent_socket: str) -> Way:
    """All plugins get the same configuration. `agent_socket` "": that of the reference plugin."""
    leases = folder / f"leases-{len(name)}"
    conf = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "nodenet" if agent_socket else "bridge",
        "bridge": "nncni0",
        "isDefaultGateway": True,
        "ipam": {"type": "host-local", "dataDir": str(leases), "ranges": [[{"subnet": "10.200.0.0/16"}]]},
    }
    if agent_socket:
        conf["agentSocket"] = agent_socket
    program = folder / "bin" / "nodenet" if agent_socket else REFERENCE / "bridge"
    return Way(name, program, node, json.dumps(conf).encode(), leases)


def _fill(way: Way, count: int) -> None:
    """Write the leases of `count` existing pods in host-local's format. Deletes all earlier ones first, because no pod
    exists at this moment."""
    folder = way.leases / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / str(IPv4Address(_FIRST + number))).write_text(f"other-{number:06}\r\neth0")
    if count:
        (folder / "last_reserved_ip.0").write_text(str(IPv4Address(_FIRST + count - 1)))


def _rounds(ways: Sequence[Way], leases: int, rounds: int) -> list[Result]:
    times: dict[tuple[str, str], list[float]] = {(way.name, verb): [] for way in ways for verb in ("add", "del")}
    for number in range(-2, rounds):  # two to warm up
        for way in ways:
            time.sleep(SETTLE_SECONDS)
            with _pods(way, 1) as pods, _at(way) as place:
                add = place.submit(_call, way, "ADD", pods[0]).result()
                gone = place.submit(_call, way, "DEL", pods[0]).result()
            if number >= 0:
                times[way.name, "add"].append(add)
                times[way.name, "del"].append(gone)
    return [_result(way, verb, leases, times) for verb in ("add", "del") for way in ways]


def _bursts(ways: Sequence[Way], bursts: int) -> list[Result]:
    """Milliseconds from the start to the end of each call, with all calls started at the same time."""
    verbs = ("burst_add", "burst_del")
    times: dict[tuple[str, str], list[float]] = {(way.name, verb): [] for way in ways for verb in verbs}
    for _ in range(bursts):
        for way in ways:
            with _pods(way, BURST) as pods, _at(way, BURST) as place:
                for verb, metric in (("ADD", "burst_add"), ("DEL", "burst_del")):
                    time.sleep(SETTLE_SECONDS)
                    times[way.name, metric] += list(place.map(lambda pod, v=verb, w=way: _call(w, v, pod), pods))
    return [_result(way, verb, 0, times, at_once=BURST) for verb in verbs for way in ways]


def _result(way: Way, metric: str, leases: int, times: dict[tuple[str, str], list[float]], at_once: int = 1) -> Result:
    mine, peer = times[way.name, metric], times[PEER, metric]
    extra = {
        "leases": leases,
        "at_once": at_once,
        "ratio_to_reference": stats.percentile(mine, 50) / stats.percentile(peer, 50),
        "p99_ratio_to_reference": stats.percentile(mine, 99) / stats.percentile(peer, 99),
    }
    return Result(way.name, "cni", 0, metric, "ms", tuple(mine), extra=extra)


@contextmanager
def _pods(way: Way, count: int) -> Iterator[list[str]]:
    made = [f"nncni{os.getpid()}-{len(way.name)}-{number}-{time.monotonic_ns() % 10**9}" for number in range(count)]
    with ExitStack() as stack:
        for name in made:
            netns.create(name)
            stack.callback(netns.delete, name)
        yield made


@contextmanager
def _at(way: Way, threads: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Threads inside the node's namespace, so that their child processes are there too. All are started before the
    first call."""
    ready = threading.Barrier(threads)

    def enter() -> None:
        netns.enter(way.node)

    with ThreadPoolExecutor(threads, initializer=enter) as pool:
        list(pool.map(lambda _: ready.wait(30), range(threads)))
        yield pool


def _call(way: Way, verb: str, pod: str) -> float:
    """Milliseconds of one call. Raises CannotRunError with the plugin's output if it fails."""
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": f"{way.program.parent}:{REFERENCE}",
        "PATH": os.environ["PATH"],
    }
    started = time.perf_counter()
    done = subprocess.run([way.program], input=way.conf, env=environment, capture_output=True, check=False, timeout=120)
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise CannotRunError(f"{way.name}: {verb} failed: {done.stdout.decode()} {done.stderr.decode()}")
    return took * 1e3


if __name__ == "__main__":
    sys.exit(main())
