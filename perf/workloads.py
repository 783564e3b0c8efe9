"""The workloads: the measurements on the node of each mode in one epoch, and their figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nodenet.errors import CannotRunError, NodenetError
from perf import blocks, memory, tools
from perf.blocks import Sizes, Taken, Target, direct_target, pod_target, service_targets
from perf.ebpf import Ebpf
from perf.load import LoadMaker
from perf.modes import SERVER_TAG, SPARE_TAG, Direct, Mode, real_backends, spare_backend, timed_update
from perf.results import Result
from perf.services import ServiceModel
from perf.tools import Cost

LATENCY = {
    "crr": "connect, request, response, close",
    "rr": "request and response on one connection",
    "udp": "first datagram of a fresh socket and its answer",
}
STREAM = "stream"
# If the expected time of a load is this many times the limit, it is not started.
_HOPELESS = 2.0
# Time slices in one block of `stream`.
_SLICES = 3


@dataclass(slots=True)
class LeftOut:
    """What is not measured, with the reason. Kept for the whole run, so that no epoch waits for the same limit
    again."""

    progress: Callable[[str], None]
    entries: list[dict[str, Any]] = field(default_factory=list)
    # Mode -> number of Services -> seconds to program them.
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, mode: str, workload: str, services: int, error: NodenetError | str) -> None:
        """Record that a figure is missing, with the reason, in the report and in the progress output."""
        entry = {"mode": mode, "workload": workload, "services": services, "reason": str(error)}
        if entry not in self.entries:
            self.progress(f"{mode}: {workload} at {services:,} Services left out: {error}")
            self.entries.append(entry)

    def names(self, mode: str, workload: str, services: int) -> bool:
        """True if the workload failed with this or a smaller number of Services. With more Services it would fail
        too."""
        return any(
            (entry["mode"], entry["workload"]) == (mode, workload) and entry["services"] <= services
            for entry in self.entries
        )

    def expected(self, mode: str, services: int) -> float:
        """The expected seconds to program so many Services, from the two largest sizes so far; 0 if unknown.

        A tool cannot always be stopped (nft is in the kernel most of the time), so a load far beyond the limit must not
        start. Only times of at least one second are extrapolated, with the exponent of the last two sizes.
        """
        known = sorted(self.seconds.get(mode, {}).items())[-2:]
        if len(known) < 2 or known[1][1] < 1 or services <= known[1][0]:
            return 0.0
        (small, short), (large, long) = known
        power = math.log(long / short) / math.log(large / small)
        return long * math.pow(services / large, power)


@dataclass(slots=True)
class Bench:
    """One epoch: its modes, and the results so far."""

    direct: Direct
    modes: list[Mode]
    maker: LoadMaker
    sizes: Sizes
    backends: int
    progress: Callable[[str], None]
    left_out: LeftOut
    # Time limit in seconds for programming and for one change.
    limit: float
    results: list[Result] = field(default_factory=list)

    def take_turns(self, targets: Sequence[Target], workload: str, words: str) -> Taken:
        """Measure rounds of blocks, with `direct` before and after the targets."""
        self.progress(f"{workload}, {words}")
        ends = direct_target(self.direct), direct_target(self.direct, "latency_repeat")
        return blocks.take_turns(self.maker, self.sizes, [ends[0], *targets, ends[1]], workload, self.progress)


def program(bench: Bench, model: ServiceModel, wanted: Collection[str]) -> list[Mode]:
    """Program the model in all modes, starting from empty. Returns the modes for which it worked."""
    there = []
    for mode in bench.modes:
        if bench.left_out.names(mode.name, "program", model.size):
            continue
        expected = bench.left_out.expected(mode.name, model.size)
        if expected > _HOPELESS * bench.limit:
            words = f"about {expected:.0f} s to be expected from smaller sizes, over the limit of {bench.limit:g} s"
            bench.left_out.add(mode.name, "program", model.size, words)
            continue
        try:
            mode.clear()
            mode.settle()
            cost = (_accounted if "memory" in wanted else _programmed)(bench, mode, model)
        except NodenetError as error:
            bench.left_out.add(mode.name, "program", model.size, error)
            _reset(mode)
            continue
        there.append(mode)
        if "program" in wanted:
            bench.results += _program_rows(mode, model.size, cost)
    return there


def _programmed(bench: Bench, mode: Mode, model: ServiceModel) -> Cost:
    """Program the model. Returns the cost. A mode that exceeds the limit is left out with more Services."""
    mode.limit = bench.limit
    cost = mode.program(model)
    mode.limit = type(mode).limit
    bench.progress(f"{mode.name}: {model.size:,} Services in {cost.seconds:.3f} s")
    bench.left_out.seconds.setdefault(mode.name, {}).setdefault(model.size, cost.seconds)
    if cost.seconds > bench.limit:
        bench.left_out.add(
            mode.name, "program", model.size + 1, f"{model.size:,} took {cost.seconds:.0f} s, over the limit"
        )
    return cost


def _reset(mode: Mode) -> None:
    mode.limit = type(mode).limit
    try:
        mode.clear()
    except NodenetError as error:
        print(f"{mode.name}: not empty again: {error}", file=sys.stderr)


def _program_rows(mode: Mode, services: int, cost: Cost) -> list[Result]:
    figures = (
        ("seconds", "s", cost.seconds),
        ("cpu_seconds", "s", cost.cpu_seconds),
        ("tool_rss", "bytes", float(cost.rss_bytes)),
    )
    # No row for modes without a tool. The workload `memory` measures the process of the eBPF mode.
    return [Result(mode.name, "program", services, metric, unit, (value,)) for metric, unit, value in figures if value]


def _accounted(bench: Bench, mode: Mode, model: ServiceModel) -> Cost:
    """Like `_programmed`, with a row of the kernel memory: exact, or left out with the reason.

    The time includes the accounting of the memory cgroup, as for kube-proxy in its container.
    """
    with ExitStack() as stack:
        stack.callback(setattr, mode, "account", None)
        try:
            mode.account = memory.account(stack, mode)
        except CannotRunError as error:
            bench.left_out.add(mode.name, "memory", 0, f"{error} ({error.hint})" if error.hint else error)
        cost = _programmed(bench, mode, model)
        value, how = mode.kernel_bytes(), memory.MAPS
        if mode.account:
            value, how = memory.charged(mode.account), memory.CHARGED
    if value is not None:
        row = Result(mode.name, "memory", model.size, "kernel", "bytes", (float(value),), extra={"how": how})
        bench.results.append(row)
    return cost


def latency(bench: Bench, modes: Sequence[Mode], model: ServiceModel, workload: str) -> None:
    """Measure the Services and pod to pod of every mode, between two blocks of `direct`, whose difference is noise."""
    protocol = "udp" if workload == "udp" else "tcp"
    targets = [target for mode in modes for target in (*service_targets(mode, model, protocol), pod_target(mode))]
    found = bench.take_turns(targets, workload, f"{model.size:,} Services")
    for target, mine in found.items():
        row = blocks.result(target, found, workload, model.size)
        bench.results.append(row)
        if workload == "crr" and target.metric == "latency":
            rates = mine.rates()
            base = blocks.limit(found, blocks.Found.rates) if row.mode != "direct" else rates
            bench.results.append(
                replace(row, metric="rate", unit="1/s", samples=rates, blocks=(), baseline=base, pod=(), extra={})
            )


def stream(bench: Bench, modes: Sequence[Mode], model: ServiceModel) -> None:
    """Measure Gbit/s of one connection that only sends, with both ends on one core."""
    bench.progress(f"{STREAM}, {model.size:,} Services")
    targets = [direct_target(bench.direct), *(service_targets(mode, model, "tcp")[0] for mode in modes)]
    targets.append(direct_target(bench.direct, "latency_repeat"))
    found: Taken = {target: blocks.Found() for target in targets}
    for number in range(bench.sizes.rounds):
        for target in reversed(targets) if number % 2 else targets:
            target.mode.flush()
            block = bench.maker.stream(target.mode.client, target.address, target.port, _SLICES)
            found[target].blocks.append([rate * 8 / 1e9 for rate in block.values])
    for target in targets:
        row = blocks.result(target, found, STREAM, model.size, "Gbit/s")
        bench.results.append(replace(row, metric=row.metric.replace("latency", "throughput"), extra={}))


def update(bench: Bench, modes: Sequence[Mode], model: ServiceModel) -> None:
    """Change the only endpoint of a Service back and forth. Measures the time until the first connection reaches the
    new one."""
    bench.progress(f"update, {model.size:,} Services: {bench.sizes.updates} changes of one endpoint")
    home, away = real_backends(1), (spare_backend(),)
    models = {SERVER_TAG: model.with_backends("middle", home), SPARE_TAG: model.with_backends("middle", away)}
    found: dict[Mode, list[tuple[float, Cost]]] = {
        mode: [] for mode in modes if not bench.left_out.names(mode.name, "update", model.size)
    }
    alive = list(found)
    for mode in alive:
        mode.program(models[SERVER_TAG])
    for number in range(bench.sizes.updates):
        tag = SERVER_TAG if number % 2 else SPARE_TAG
        for mode in list(alive):
            mode.flush()
            try:
                found[mode].append(timed_update(mode, models[tag], "middle", tag, bench.limit))
            except NodenetError as error:
                bench.left_out.add(mode.name, "update", model.size, error)
                alive.remove(mode)
    for mode in alive:
        bench.results += _update_rows(mode, model.size, found[mode])
        mode.program(model)


def _update_rows(mode: Mode, services: int, found: Sequence[tuple[float, Cost]]) -> list[Result]:
    figures = (
        ("first_connection", [seconds for seconds, _ in found]),
        ("sync", [cost.seconds for _, cost in found]),
        ("cpu", [cost.cpu_seconds for _, cost in found]),
    )
    return [
        Result(mode.name, "update", services, metric, "ms", tuple(value * 1000 for value in values))
        for metric, values in figures
    ]


def policy(bench: Bench, rules: Sequence[int]) -> None:
    """Measure new flows with a policy of N rules (pod to pod on the eBPF node compared with `direct`), and the time to
    write the rules."""
    mode = next((mode for mode in bench.modes if type(mode) is Ebpf), None)
    if mode is None:
        bench.left_out.add("policy", "policy", 0, "it needs the mode ebpf: the other modes have no policy")
        return
    for number in rules:
        cost = mode.set_policy_rules(number)
        target = pod_target(mode)
        found = bench.take_turns([target], "crr", f"{number:,} policy rules")
        row = blocks.result(target, found, "policy", 0)
        extra = {"rules": number}
        bench.results += [
            replace(row, metric=f"latency_{number}_rules", extra=extra),
            Result(mode.name, "policy", 0, f"seconds_{number}_rules", "s", (cost.seconds,), extra=extra),
        ]
    mode.set_policy_rules(0)


def flows(bench: Bench, quiet: Mode, model: ServiceModel) -> None:
    """Measure the same Service with events of forwarded packets on (and read) and off."""
    loud = next((mode for mode in bench.modes if type(mode) is Ebpf), None)
    if loud is None:
        bench.left_out.add("flows", "flows", model.size, "it needs the mode ebpf: the other modes have no events")
        return
    loud.clear()
    for mode in (loud, quiet):
        mode.program(model)
    targets = [service_targets(mode, model, "tcp")[0] for mode in (loud, quiet)]
    found = bench.take_turns(targets, "crr", "flows on and off")
    for target in targets:
        metric = "latency_events_on" if target.mode is loud else "latency_events_off"
        row = blocks.result(target, found, "flows", model.size)
        bench.results.append(replace(row, mode=loud.name, metric=metric, extra={}))


def footprint(bench: Bench, services: int) -> None:
    """Measure the memory of the agent's user space, in a separate process with the same number of Services."""
    command = [sys.executable, "-m", "perf.footprint", str(services), str(bench.backends)]
    root = str(Path(__file__).parents[1])
    value = float(tools.output(command, environment={"PYTHONPATH": root}))
    how = "a fresh process with store, compiler and tables"
    bench.results.append(Result("ebpf", "memory", services, "process", "bytes", (value,), extra={"how": how}))
