"""A complete run from settings to report: makes the nodes, measures everything, and removes everything."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.link import cgroups
from perf import environment, load, packets, paths, results, workloads
from perf.blocks import Sizes
from perf.ebpf import Ebpf, EbpfPacket, EbpfQuiet
from perf.load import LoadMaker
from perf.modes import Direct, Iptables, Ipvs, Mode, Nftables, real_backends
from perf.node import MOST_BACKENDS, own_cgroup, own_mounts
from perf.services import ServiceModel, build
from perf.workloads import LATENCY, Bench, LeftOut

MODES: dict[str, type[Mode]] = {
    "direct": Direct,
    "ebpf": Ebpf,
    "ebpf-packet": EbpfPacket,
    "iptables": Iptables,
    "nftables": Nftables,
    "ipvs": Ipvs,
}
WORKLOADS = (*LATENCY, "stream", "program", "update", "policy", "flows", "memory", "cni", "paths", "packets")
# Those with objects of their own, after all others.
APART = {"cni", "paths", "packets"}
MOST_SERVICES = 50_000
POLICY_RULES = (0, 100, 1000)
# Number of noise computations per epoch, and seconds for the kernel to remove the objects of the previous epoch.
_SPINS = 60
_SETTLE = 0.2
# The module of the workload `cni`. It has a function run(progress) that returns rows.
CNI_MODULE = "perf.cni"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run. `cpu`: the CPU of client and server; None: not pinned. `limit`: seconds that a mode may
    take to program N Services, and for one change of an endpoint. What takes longer is left out of the report, with the
    reason."""

    modes: tuple[str, ...] = ("direct", "ebpf", "ebpf-packet", "iptables", "nftables")
    services: tuple[int, ...] = (1, 1000)
    workloads: tuple[str, ...] = ("crr", "program", "update")
    backends: int = 1
    cpu: int | None = 0
    limit: float = 60.0
    sizes: Sizes = field(default_factory=Sizes)
    cache: Path = Path("/var/cache/nodenet")

    def check(self) -> None:
        """Raises BadInputError that lists all wrong settings."""
        problems = [f"--modes: {name}: unknown (known: {', '.join(MODES)})" for name in self.modes if name not in MODES]
        problems += [
            f"--workloads: {name}: unknown (known: {', '.join(WORKLOADS)})"
            for name in self.workloads
            if name not in WORKLOADS
        ]
        problems += [
            f"--services: {count}: expected 1 to {MOST_SERVICES}"
            for count in self.services
            if not 1 <= count <= MOST_SERVICES
        ]
        for option, given in (("--modes", self.modes), ("--services", self.services), ("--workloads", self.workloads)):
            if not given:
                problems.append(f"{option}: expected at least one")
        if not 1 <= self.backends <= MOST_BACKENDS:
            problems.append(f"--backends: {self.backends}: expected 1 to {MOST_BACKENDS}")
        if self.limit <= 0:
            problems.append(f"--limit-seconds: {self.limit:g}: expected more than 0")
        if self.cpu is not None and self.cpu not in os.sched_getaffinity(0):
            problems.append(f"--cpu: {self.cpu}: this process may run on {sorted(os.sched_getaffinity(0))}")
        if problems:
            raise BadInputError("; ".join(problems))


def run(settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run everything. Returns the report as in the JSON file. The calling process stays in a private mount namespace.

    Raises CannotRunError without root, or if only one mode was requested and it cannot run here.
    """
    settings.check()
    if os.geteuid() != 0:
        raise CannotRunError("the benchmark needs root", "run it with sudo: it makes namespaces and loads programs")
    started, sizes = time.monotonic(), settings.sizes
    if set(settings.workloads) <= APART:
        settings = replace(settings, sizes=replace(settings.sizes, epochs=0))
    classes, skipped = _possible(settings.modes) if settings.sizes.epochs else ([], [])
    meta = environment.describe() | {
        "pinned_cpu": settings.cpu,
        "backends_per_service": settings.backends,
        "scheduling": "client and server take turns where one waits (SCHED_BATCH)",
        "epochs": settings.sizes.epochs,
        "rounds": settings.sizes.rounds,
        "samples_per_block": settings.sizes.count,
    }
    executable = load.build(settings.cache)
    left_out, epochs, steal = LeftOut(progress), [], environment.steal()
    notes: dict[str, Any] = {"tools": {}, "notes": {}, "spins": []}
    with ExitStack() as stack:
        _stay_away(stack, settings.cpu)
        folder = stack.enter_context(own_mounts())
        cgroup = stack.enter_context(own_cgroup())
        for number in range(settings.sizes.epochs):
            Iptables.largest = max(settings.services)
            Ebpf.surroundings = (folder, cgroup / f"epoch{number}", settings.cache, _entries(settings))
            report_progress = _prefixed(progress, f"epoch {number + 1} of {settings.sizes.epochs}: ")
            epochs.append(_epoch(settings, classes, executable, left_out, report_progress, notes, first=not number))
    found = results.merge(epochs)
    if "cni" in settings.workloads:
        found += _cni(left_out, progress)
    if "paths" in settings.workloads:
        arguments = (settings.modes, sizes, executable, progress, lambda mode, why: left_out.add(mode, "paths", 0, why))
        found += _or_left_out(left_out, "paths", lambda: paths.run(*arguments))
    if "packets" in settings.workloads:
        found += _or_left_out(left_out, "packets", lambda: packets.run(sizes, settings.cache, progress))
    meta |= {
        "noise": environment.noise(notes["spins"]) | {"stolen": round(environment.steal() - steal, 2)},
        "load_after": list(os.getloadavg()),
        "tools": notes["tools"],
        "notes": list(notes["notes"]),
        "seconds": round(time.monotonic() - started, 1),
        "skipped": skipped + left_out.entries,
    }
    return {"meta": meta, "results": [row.as_json() for row in found], "slopes": results.slopes(found)}


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda words: progress(prefix + words)


def _epoch(
    settings: Settings,
    classes: Sequence[type[Mode]],
    executable: Path,
    left_out: LeftOut,
    progress: Callable[[str], None],
    notes: dict[str, Any],
    first: bool,
) -> list[results.Result]:
    """Measure everything once, on nodes, pods, servers, programs and rules that exist only for this epoch."""
    folder, cgroup, *_ = Ebpf.surroundings
    with ExitStack() as stack:
        cgroups.make(cgroup)
        stack.callback(cgroups.remove, cgroup)
        stack.callback(_unpin, folder / "bpf")
        maker = LoadMaker(executable)
        bench = _prepare(stack, settings, classes, maker, left_out, progress)
        # Entered last, so that it is closed first: namespaces and cgroups can only be removed without processes.
        stack.enter_context(maker)
        time.sleep(_SETTLE)
        notes["spins"] += maker.spin(bench.direct.client, _SPINS)
        _measure(bench, settings, stack, first)
        notes["tools"] |= {mode.name: mode.version() for mode in bench.modes if mode.version()}
        notes["notes"] |= {note: None for mode in bench.modes for note in mode.notes}
        for mode in bench.modes:
            mode.clear()
    return bench.results


def _unpin(bpffs: Path) -> None:
    """Unpin all programs and maps, because the next epoch loads its own. (Each BPF file system also has two files of
    the kernel.)"""
    for path in bpffs.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _possible(names: Sequence[str]) -> tuple[list[type[Mode]], list[dict[str, Any]]]:
    """The modes that this machine can run, and the others with the reason. If the only requested mode cannot run, its
    CannotRunError is raised."""
    classes, skipped = [], []
    asked = [name for name in dict.fromkeys(names) if name != "direct"]
    for name in asked:
        try:
            MODES[name].check()
        except NodenetError as error:
            if len(asked) == 1:
                raise
            skipped.append({"mode": name, "workload": "", "services": 0, "reason": f"{error} ({error.hint})"})
        else:
            classes.append(MODES[name])
    if asked and not classes:
        raise CannotRunError("; ".join(f"{entry['mode']}: {entry['reason']}" for entry in skipped))
    return classes, skipped


def _prepare(
    stack: ExitStack,
    settings: Settings,
    classes: Sequence[type[Mode]],
    maker: LoadMaker,
    left_out: LeftOut,
    progress: Callable[[str], None],
) -> Bench:
    prefix = f"bench{os.getpid()}"
    progress("a node of its own for each mode: " + ", ".join(["direct", *(mode.name for mode in classes)]))
    direct = Direct(stack, maker, prefix, settings.backends, settings.cpu)
    modes = [mode(stack, maker, prefix, settings.backends, settings.cpu) for mode in classes]
    return Bench(direct, modes, maker, settings.sizes, settings.backends, progress, left_out, settings.limit)


def _measure(bench: Bench, settings: Settings, stack: ExitStack, first: bool) -> None:
    wanted = set(settings.workloads)
    for count in settings.services:
        model = build(count, settings.backends, real_backends(settings.backends), udp="udp" in wanted)
        modes = workloads.program(bench, model, wanted)
        for name in LATENCY:
            if name in wanted:
                workloads.latency(bench, modes, model, name)
        if "stream" in wanted:
            workloads.stream(bench, modes, model)
        if "update" in wanted:
            workloads.update(bench, modes, model)
        if first and "memory" in wanted and any(type(mode) is Ebpf for mode in modes):
            workloads.footprint(bench, count)
    _apart(bench, settings, wanted, stack)


def _apart(bench: Bench, settings: Settings, wanted: set[str], stack: ExitStack) -> None:
    """Run the workloads that do not depend on the number of Services."""
    if "policy" in wanted:
        workloads.policy(bench, POLICY_RULES)
    if "flows" in wanted:
        model: ServiceModel = build(1, settings.backends, real_backends(settings.backends))
        quiet = EbpfQuiet(stack, bench.maker, f"bench{os.getpid()}", settings.backends, settings.cpu)
        workloads.flows(bench, quiet, model)


def _cni(left_out: LeftOut, progress: Callable[[str], None]) -> list[results.Result]:
    """Run the benchmark of the CNI executable, if this build has it."""
    if find_spec(CNI_MODULE) is None:
        left_out.add("cni", "cni", 0, "this build has no benchmark of the CNI executable")
        return []
    try:
        found: list[results.Result] = import_module(CNI_MODULE).run(progress)
    except CannotRunError as error:
        left_out.add("cni", "cni", 0, f"{error} ({error.hint})")
        return []
    return found


def _or_left_out(left_out: LeftOut, workload: str, measure: Callable[[], list[results.Result]]) -> list[results.Result]:
    try:
        return measure()
    except CannotRunError as error:
        left_out.add(workload, workload, 0, f"{error} ({error.hint})" if error.hint else error)
        return []


def _entries(settings: Settings) -> int:
    """The size of the Service maps for the largest model: per Service an address, a master entry and one slot per
    backend, and a third of the map free."""
    needed = max(settings.services) * (settings.backends + 2) * (2 if "udp" in settings.workloads else 1)
    size = 65536
    while size < needed * 4 // 3:
        size *= 2
    return size


def _stay_away(stack: ExitStack, cpu: int | None) -> None:
    """Keep this process and its tools off the measured CPU, if there is another one."""
    allowed = os.sched_getaffinity(0)
    if cpu is not None and len(allowed) > 1:
        os.sched_setaffinity(0, allowed - {cpu})
        stack.callback(os.sched_setaffinity, 0, allowed)
