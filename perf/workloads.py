"""The workloads: what is done on every mode's node, in interleaved blocks, and the figures that come out of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from nodenet.errors import NodenetError
from perf import tools
from perf.ebpf import Ebpf
from perf.load import LoadMaker
from perf.modes import SERVER_TAG, SPARE_TAG, Direct, Mode, real_backends, spare_backend, timed_update
from perf.results import Result
from perf.services import TARGET_PORT, ServiceModel
from perf.tools import Cost

LATENCY = {
    "crr": "connect, request, response, close",
    "rr": "request and response on one connection",
    "udp": "first datagram of a fresh socket and its answer",
}
STREAM = "stream"
# Seconds that one `until` waits for its change.
UPDATE_LIMIT = 300.0
# Further programming runs are left out when they would take longer than this together.
PROGRAM_BUDGET = 15.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: blocks per target, samples per block, changes per mode, runs from empty."""

    rounds: int = 10
    count: int = 500
    updates: int = 5
    programs: int = 5

    @property
    def warmup(self) -> int:
        return max(50, self.count // 5)


class Target(NamedTuple):
    """An address to call from a mode's client pod, and the name of the figure that comes of it."""

    mode: Mode
    metric: str
    address: str
    port: int


@dataclass(slots=True)
class Bench:
    """One run: the modes that are there, what was found so far, and why something was left out."""

    direct: Direct
    modes: list[Mode]
    maker: LoadMaker
    sizes: Sizes
    backends: int
    progress: Callable[[str], None]
    results: list[Result] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, mode: str, workload: str, services: int, error: NodenetError | str) -> None:
        """Say that a figure is missing, and why: in the report, and to who watches."""
        self.progress(f"{mode}: {workload} at {services} Services left out: {error}")
        self.skipped.append({"mode": mode, "workload": workload, "services": services, "reason": str(error)})


def program(bench: Bench, model: ServiceModel, wanted: bool) -> list[Mode]:
    """Bring the model into every mode's kernel, from empty; the modes in which that worked.

    When the figure is wanted, several times, one run of every mode after the other.
    """
    costs: dict[Mode, list[Cost]] = {mode: [] for mode in bench.modes}
    grown: dict[Mode, int] = {}
    for number in range(bench.sizes.programs if wanted else 1):
        for mode in list(costs):
            if number and sum(cost.seconds for cost in costs[mode]) * (number + 1) / number > PROGRAM_BUDGET:
                continue
            try:
                mode.clear()
                mode.settle()
                before = _kernel_memory(mode)
                cost = mode.program(model)
                grown.setdefault(mode, _kernel_memory(mode) - before)
            except NodenetError as error:
                bench.skip(mode.name, "program", model.size, error)
                del costs[mode]
                _reset(mode)
                continue
            bench.progress(f"{mode.name}: {model.size} Services in {cost.seconds:.3f} s")
            costs[mode].append(cost)
    if wanted:
        for mode, found in costs.items():
            _program_rows(bench, mode, model.size, found)
    bench.results += [_memory_row(mode, model.size, grown[mode], costs[mode]) for mode in costs if mode in grown]
    return list(costs)


def _reset(mode: Mode) -> None:
    try:
        mode.clear()
    except NodenetError as error:
        print(f"{mode.name}: not empty again: {error}", file=sys.stderr)


def _program_rows(bench: Bench, mode: Mode, services: int, costs: Sequence[Cost]) -> None:
    for metric, unit, values in (
        ("seconds", "s", [cost.seconds for cost in costs]),
        ("cpu_seconds", "s", [cost.cpu_seconds for cost in costs]),
        ("tool_rss", "bytes", [float(cost.rss_bytes) for cost in costs]),
    ):
        if any(values):  # the eBPF mode's memory is not a tool's: workload memory tells it
            bench.results.append(Result(mode.name, "program", services, metric, unit, tuple(values)))


def _memory_row(mode: Mode, services: int, grown: int, costs: Sequence[Cost]) -> Result:
    """Kernel memory: exact where the kernel accounts it to maps, else what the machine's own counters grew by."""
    exact = mode.kernel_bytes()
    value = float(exact if exact is not None else max(0, grown))
    how = "accounted to the maps" if exact is not None else "growth of Slab and vmalloc of the whole machine"
    return Result(mode.name, "memory", services, "kernel", "bytes", (value,), extra={"how": how})


def _kernel_memory(mode: Mode) -> int:
    """Bytes of slab, vmalloc and per-CPU memory of the whole machine: other work shows in it."""
    if mode.kernel_bytes() is not None:
        return 0
    wanted = ("Slab:", "VmallocUsed:", "Percpu:")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


def latency(bench: Bench, modes: Sequence[Mode], model: ServiceModel, workload: str) -> None:
    """Rounds of blocks: direct, every mode's targets, and direct once more: the second tells the machine's noise."""
    protocol = "udp" if workload == "udp" else "tcp"
    targets = [_direct(bench.direct)]
    for mode in modes:
        targets += _service_targets(mode, model, protocol)
        targets.append(_pod(mode))
    targets.append(_direct(bench.direct)._replace(metric="latency_repeat"))
    found = run_blocks(bench, targets, workload, f"{model.size} Services")
    _latency_rows(bench, found, workload, model.size)


def run_blocks(bench: Bench, targets: Sequence[Target], workload: str, words: str) -> dict[Target, list[list[float]]]:
    """Samples of every target by round: A B C, A B C."""
    found: dict[Target, list[list[float]]] = {target: [] for target in targets}
    sizes = bench.sizes
    for number in range(sizes.rounds):
        bench.progress(f"{workload}, {words}: round {number + 1} of {sizes.rounds}")
        for target in targets:
            target.mode.flush()
            samples = bench.maker.samples(
                target.mode.client, workload, target.address, target.port, sizes.count, sizes.warmup
            )
            found[target].append(samples)
    return found


def _latency_rows(bench: Bench, found: dict[Target, list[list[float]]], workload: str, services: int) -> None:
    medians = {target: tuple(map(statistics.median, blocks)) for target, blocks in found.items()}
    base = next(medians[target] for target in found if target.mode is bench.direct)
    pods = {target.mode: medians[target] for target in found if target.metric == "latency_pod"}
    for target, blocks in found.items():
        samples = tuple(value for block in blocks for value in block)
        pod = pods.get(target.mode, ()) if target.metric != "latency_pod" else ()
        row = Result(target.mode.name, workload, services, target.metric, "us", samples, medians[target], base, pod)
        bench.results.append(row)
        if workload == "crr" and target.metric == "latency":
            rates = tuple(1e6 / statistics.fmean(block) for block in blocks)
            base_rates = next(
                tuple(1e6 / statistics.fmean(block) for block in found[other])
                for other in found
                if other.mode is bench.direct
            )
            bench.results.append(
                replace(row, metric="rate", unit="1/s", samples=rates, blocks=(), baseline=base_rates, pod=())
            )


def stream(bench: Bench, modes: Sequence[Mode], model: ServiceModel) -> None:
    """Gbit/s of one connection that only sends, both ends on one core. A block is a second."""
    targets = [_direct(bench.direct)]
    for mode in modes:
        targets += [_service_targets(mode, model, "tcp")[0], _pod(mode)]
    targets.append(_direct(bench.direct)._replace(metric="latency_repeat"))
    blocks: dict[Target, list[list[float]]] = {target: [] for target in targets}
    for number in range(max(3, bench.sizes.rounds // 2)):
        bench.progress(f"stream, {model.size} Services: round {number + 1}")
        for target in targets:
            target.mode.flush()
            rates = bench.maker.stream(target.mode.client, target.address, target.port, 5)
            blocks[target].append([rate * 8 / 1e9 for rate in rates])
    medians = {target: tuple(map(statistics.median, found)) for target, found in blocks.items()}
    for target, found in blocks.items():
        samples = tuple(value for block in found for value in block)
        metric = target.metric.replace("latency", "throughput")
        bench.results.append(
            Result(
                target.mode.name, STREAM, model.size, metric, "Gbit/s", samples, medians[target], medians[targets[0]]
            )
        )


def update(bench: Bench, modes: Sequence[Mode], model: ServiceModel) -> None:
    """One Service with one endpoint changes it, to and fro: until the first connection reaches the new one."""
    home, away = real_backends(1), (spare_backend(),)
    models = {SERVER_TAG: model.with_backends("middle", home), SPARE_TAG: model.with_backends("middle", away)}
    alive = list(modes)
    reached: dict[Mode, list[float]] = {mode: [] for mode in modes}
    costs: dict[Mode, list[Cost]] = {mode: [] for mode in modes}
    for mode in modes:
        mode.program(models[SERVER_TAG])
    for number in range(bench.sizes.updates):
        tag = SERVER_TAG if number % 2 else SPARE_TAG
        bench.progress(f"update, {model.size} Services: change {number + 1} of {bench.sizes.updates}")
        for mode in list(alive):
            mode.flush()
            try:
                seconds, cost = timed_update(mode, models[tag], "middle", tag, UPDATE_LIMIT)
            except NodenetError as error:
                bench.skip(mode.name, "update", model.size, error)
                alive.remove(mode)
                continue
            reached[mode].append(seconds)
            costs[mode].append(cost)
    for mode in alive:
        _update_rows(bench, mode, model.size, reached[mode], costs[mode])
        mode.program(model)


def _update_rows(bench: Bench, mode: Mode, services: int, reached: Sequence[float], costs: Sequence[Cost]) -> None:
    for metric, values in (
        ("first_connection", list(reached)),
        ("sync", [cost.seconds for cost in costs]),
        ("cpu", [cost.cpu_seconds for cost in costs]),
    ):
        milliseconds = tuple(value * 1000 for value in values)
        bench.results.append(Result(mode.name, "update", services, metric, "ms", milliseconds))


def policy(bench: Bench, rules: Sequence[int]) -> None:
    """New flows under a policy of N rules: pod to pod on the eBPF node against direct, and the time to write them."""
    mode = next((mode for mode in bench.modes if type(mode) is Ebpf), None)
    if mode is None:
        bench.skip("policy", "policy", 0, "it needs the mode ebpf: the other modes have no policy")
        return
    for number in rules:
        cost = mode.set_policy_rules(number)
        targets = [_direct(bench.direct), _pod(mode)]
        found = run_blocks(bench, targets, "crr", f"{number} policy rules")
        medians = {target: tuple(map(statistics.median, blocks)) for target, blocks in found.items()}
        samples = tuple(value for block in found[targets[1]] for value in block)
        extra = {"rules": number}
        bench.results += [
            Result(
                mode.name,
                "policy",
                0,
                f"latency_{number}_rules",
                "us",
                samples,
                medians[targets[1]],
                medians[targets[0]],
                extra=extra,
            ),
            Result(mode.name, "policy", 0, f"seconds_{number}_rules", "s", (cost.seconds,), extra=extra),
        ]
    mode.set_policy_rules(0)


def flows(bench: Bench, quiet: Mode, model: ServiceModel) -> None:
    """The same Service with events of what is forwarded on (and read), and off."""
    loud = next((mode for mode in bench.modes if type(mode) is Ebpf), None)
    if loud is None:
        bench.skip("flows", "flows", model.size, "it needs the mode ebpf: the other modes have no events")
        return
    quiet.program(model)
    targets = [_direct(bench.direct)]
    targets += [_service_targets(mode, model, "tcp")[0] for mode in (loud, quiet)]
    found = run_blocks(bench, targets, "crr", "flows on and off")
    medians = {target: tuple(map(statistics.median, blocks)) for target, blocks in found.items()}
    for target in targets[1:]:
        samples = tuple(value for block in found[target] for value in block)
        metric = "latency_events_on" if target.mode is loud else "latency_events_off"
        bench.results.append(
            Result("ebpf", "flows", model.size, metric, "us", samples, medians[target], medians[targets[0]])
        )


def footprint(bench: Bench, services: int) -> None:
    """Memory of the agent's user space, in a process of its own that knows as many Services."""
    command = [sys.executable, "-m", "perf.footprint", str(services), str(bench.backends)]
    root = str(Path(__file__).parents[1])
    value = float(tools.output(command, environment={"PYTHONPATH": root}))
    how = "a fresh process with store, compiler and tables"
    bench.results.append(Result("ebpf", "memory", services, "process", "bytes", (value,), extra={"how": how}))


def _direct(mode: Mode) -> Target:
    return Target(mode, "latency", real_backends(1)[0].address, TARGET_PORT)


def _pod(mode: Mode) -> Target:
    return Target(mode, "latency_pod", real_backends(1)[0].address, TARGET_PORT)


def _service_targets(mode: Mode, model: ServiceModel, protocol: str) -> list[Target]:
    """The middle of the list first: the figure that stands for the mode."""
    found = []
    names = [name for name, _ in model.places] if mode.ordered else ["middle"]
    for place in sorted(names, key=lambda name: name != "middle"):
        service = model.at(place, protocol)
        metric = "latency" if place == "middle" else f"latency_{place}"
        found.append(Target(mode, metric, service.cluster_ip, service.port))
    return found
