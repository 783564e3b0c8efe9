#!/usr/bin/env python3
"""Measures the cost of a packet (Service compared with direct, same-node path compared with a plain bridge), and the
agent itself.

Everything is in one run, with interleaved modes (A B C A B C), so that the machine's noise affects all of them equally.
Policy and conntrack are on. perf/README.md explains what each figure means and what it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NODENET = [sys.executable, "-m", "nodenet"]
PORT = "9000"
# Client and server share one CPU, so that their placement does not affect the result. (env is needed because `lab exec`
# does not pass on the environment.)
PINNED = ("env", "CRR_CPU=0")


@dataclass(frozen=True, slots=True)
class Mode:
    """One path to the server: the command prefix to run a program at the client's place, and the address to call."""

    name: str
    prefix: tuple[str, ...]
    address: str
    port: str


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int
    count: int
    warmup: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="blocks per mode (default 12)")
    parser.add_argument("--count", type=int, default=1000, help="samples per block (default 1000)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("first_light: needs root: it makes network namespaces and loads eBPF programs", file=sys.stderr)
        return 3
    sizes = Sizes(arguments.rounds, arguments.count, max(50, arguments.count // 10))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodenet-perf-")))
        crr = build(folder)
        say("lab of two nodes, and a twin pair of namespaces on a plain bridge")
        lab = stack.enter_context(a_lab(f"perf{os.getpid()}"))
        bridge = stack.enter_context(a_bridge(f"nnperf{os.getpid()}", crr))
        modes = [bridge, *stack.enter_context(lab_modes(lab, crr))]
        result = {"latency": measure(crr, modes, sizes), "agents": agents(lab)}
    report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def say(text: str) -> None:
    print(f"[perf] {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, timeout: float = 180) -> str:
    """The stdout of a command. Its stderr is not redirected."""
    return subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True, timeout=timeout
    ).stdout


def build(folder: Path) -> Path:
    target = folder / "crr"
    run("cc", "-O2", "-Wall", "-o", target, HERE / "crr.c")
    return target


@contextmanager
def a_lab(name: str) -> Iterator[str]:
    manifests = HERE / "manifests" / "crr.yaml"
    try:
        run(*NODENET, "lab", "up", "--name", name, "--nodes", "2", "--no-dns", "-f", manifests)
        yield name
    finally:
        run(*NODENET, "lab", "down", "--name", name)


@contextmanager
def a_bridge(name: str, crr: Path) -> Iterator[Mode]:
    """The reference: the same veth pairs and bridge without programs, policy and conntrack."""
    client, server, node = f"{name}c", f"{name}s", f"{name}n"
    with ExitStack() as stack:
        for netns in (client, server, node):
            run("ip", "netns", "add", netns)
            stack.callback(run, "ip", "netns", "del", netns)
        run("ip", "-n", node, "link", "add", "br0", "up", "type", "bridge")
        for index, netns in enumerate((client, server), 1):
            run("ip", "-n", node, "link", "add", f"v{index}", "type", "veth", "peer", "name", "eth0", "netns", netns)
            run("ip", "-n", node, "link", "set", f"v{index}", "master", "br0", "up")
            run("ip", "-n", netns, "addr", "add", f"10.99.0.{index}/24", "dev", "eth0")
            run("ip", "-n", netns, "link", "set", "eth0", "up")
        enter = ("nsenter", f"--net=/run/netns/{server}")
        stack.enter_context(serving([*enter, *PINNED, str(crr), "server", PORT]))
        no_time_wait(["nsenter", f"--net=/run/netns/{client}"])
        yield Mode("plain bridge", ("nsenter", f"--net=/run/netns/{client}"), "10.99.0.2", PORT)


@contextmanager
def lab_modes(lab: str, crr: Path) -> Iterator[list[Mode]]:
    pods = {item["metadata"]["name"]: item for item in listed(lab, "pods")}
    services = {item["metadata"]["name"]: item for item in listed(lab, "services")}
    enter = {pod: (*NODENET, "lab", "exec", "--name", lab, "-n", "perf", pod, "--") for pod in pods}
    with ExitStack() as stack:
        no_time_wait(enter["client"])
        for pod in ("near", "far"):
            stack.enter_context(serving([*enter[pod], *PINNED, str(crr), "server", PORT]))
        address = {pod: pods[pod]["status"]["podIP"] for pod in ("near", "far")}
        yield [
            Mode("pod to pod, same node", enter["client"], address["near"], PORT),
            Mode("pod to Service, same node", enter["client"], services["near"]["spec"]["clusterIP"], "80"),
            Mode("pod to pod, other node", enter["client"], address["far"], PORT),
            Mode("pod to Service, other node", enter["client"], services["far"]["spec"]["clusterIP"], "80"),
        ]


def listed(lab: str, kind: str) -> list[dict[str, Any]]:
    found = json.loads(run(*NODENET, "lab", "get", kind, "--name", lab, "-n", "perf", "-o", "json"))
    items: list[dict[str, Any]] = found["items"] if isinstance(found, dict) else found
    return items


def no_time_wait(enter: Sequence[str]) -> None:
    """Allow no sockets in TIME_WAIT. The client closes first, so they would use up its ports until connect() must
    search for a long time."""
    run(*enter, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets")


@contextmanager
def serving(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(10)


def measure(crr: Path, modes: Sequence[Mode], sizes: Sizes) -> dict[str, Any]:
    """{workload: {mode: {"p50": [us per block], "p99": [...]}}}. Each round has one block of every mode."""
    found: dict[str, Any] = {}
    for workload in ("crr", "rr"):
        found[workload] = {mode.name: {"p50": [], "p99": []} for mode in modes}
        for number in range(sizes.rounds):
            say(f"{workload}: round {number + 1} of {sizes.rounds}")
            for mode in modes:
                samples = block(crr, mode, workload, sizes)
                found[workload][mode.name]["p50"].append(statistics.median(samples))
                found[workload][mode.name]["p99"].append(statistics.quantiles(samples, n=100)[98])
    return found


def block(crr: Path, mode: Mode, workload: str, sizes: Sizes) -> list[float]:
    """One block: microseconds of each round trip."""
    out = run(*mode.prefix, *PINNED, str(crr), workload, mode.address, mode.port, str(sizes.count), str(sizes.warmup))
    return [int(line) / 1000 for line in out.split()]


def agents(lab: str) -> list[dict[str, Any]]:
    """Memory and start time of each agent, for its first start in the lab and after a restart."""
    found = []
    for node in ("node1", "node2"):
        first = status(lab, node)
        run(*NODENET, "lab", "agent", "restart", node, "--name", lab)
        again = status(lab, node, other_than=first["pid"])
        found.append(
            {
                "node": node,
                "rssMiB": rss(again["pid"]),
                "firstStartSeconds": first["readyAfterSeconds"],
                "restartSeconds": again["readyAfterSeconds"],
                "restartWrites": sum(again["reconcile"]["firstWrites"].values()),
                "restartAdopted": again["datapath"]["adopted"],
            }
        )
    return found


def status(lab: str, node: str, other_than: int = 0) -> dict[str, Any]:
    for _ in range(200):
        done = subprocess.run(
            [*NODENET, "status", "--lab", lab, "--node", node, "-o", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout:
            found: dict[str, Any] = json.loads(done.stdout)
            if found.get("ready") and found["pid"] != other_than:
                return found
    raise RuntimeError(f"the agent of {node} does not become ready: {done.stderr}")


def rss(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


PAIRS = {
    "pod to pod, same node": "plain bridge",
    "pod to Service, same node": "pod to pod, same node",
    "pod to Service, other node": "pod to pod, other node",
}


def report(result: dict[str, Any]) -> None:
    names = {"crr": "connect, request, response, close", "rr": "request and response on one connection"}
    for workload, modes in result["latency"].items():
        print(f"\n{names[workload]}: us, median of the blocks' medians (lowest - highest)")
        for name, figures in modes.items():
            p50 = figures["p50"]
            line = f"  {name:28} p50 {statistics.median(p50):7.1f} ({min(p50):.1f} - {max(p50):.1f})"
            line += f"  p99 {statistics.median(figures['p99']):7.1f}"
            if name in PAIRS:
                base = modes[PAIRS[name]]["p50"]
                ratios = [mine / other for mine, other in zip(p50, base, strict=True)]
                line += f"  {statistics.median(ratios):.2f} x {PAIRS[name]} ({min(ratios):.2f} - {max(ratios):.2f})"
            print(line)
    print("\nagents")
    for agent in result["agents"]:
        print(
            f"  {agent['node']}: {agent['rssMiB']} MiB resident, ready {agent['firstStartSeconds']} s after its first "
            f"start and {agent['restartSeconds']} s after a restart, which made {agent['restartWrites']} map writes"
        )


if __name__ == "__main__":
    sys.exit(main())
