"""Measures short blocks in turn: in each round one block per target, and `direct` at both ends."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nodenet.errors import CannotRunError
from perf.load import Block, LoadMaker
from perf.modes import Mode, real_backends
from perf.results import Result
from perf.services import TARGET_PORT, ServiceModel

# Seconds between two lines of progress in a workload of many rounds.
_PROGRESS_SECONDS = 5.0
# Attempts for a block, so that one lost connection does not end a run of many minutes.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a run: epochs (each with a new set-up), and per epoch: blocks per target, samples per block, changes
    of one endpoint."""

    epochs: int = 6
    rounds: int = 20
    count: int = 60
    updates: int = 3

    @property
    def warmup(self) -> int:
        """How many samples of a block are discarded: at its start conntrack is empty and the caches are cold."""
        return max(10, self.count // 4)


class Target(NamedTuple):
    """An address to call from a mode's client pod, and the name of the resulting figure."""

    mode: Mode
    metric: str
    address: str
    port: int


@dataclass(slots=True)
class Found:
    """The blocks of a target in the order of the rounds. `switches`: [samples and warm-up, voluntary, involuntary
    context switches]."""

    blocks: list[list[float]] = field(default_factory=list)
    switches: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def medians(self) -> tuple[float, ...]:
        return tuple(map(statistics.median, self.blocks))

    @property
    def samples(self) -> tuple[float, ...]:
        return tuple(value for block in self.blocks for value in block)

    def rates(self) -> tuple[float, ...]:
        """Connections per second of each block, computed from the times in us of consecutive connections."""
        return tuple(1e6 / statistics.fmean(block) for block in self.blocks)


Taken = dict[Target, Found]


def take_turns(
    maker: LoadMaker, sizes: Sizes, targets: Sequence[Target], workload: str, progress: Callable[[str], None]
) -> Taken:
    """Rounds of one block per target: A B C, C B A, A B C, so that drift affects all targets equally.

    The first and the last target are `direct`, so each round is between two blocks of it.
    """
    found: Taken = {target: Found() for target in targets}
    reported_at = time.monotonic()
    for number in range(sizes.rounds):
        if time.monotonic() - reported_at > _PROGRESS_SECONDS:
            reported_at = time.monotonic()
            progress(f"{workload}: round {number + 1} of {sizes.rounds}")
        for target in reversed(targets) if number % 2 else targets:
            block = _block(maker, sizes, target, workload)
            mine = found[target]
            mine.blocks.append(block.values)
            counts = (sizes.count + sizes.warmup, block.waits, block.taken)
            mine.switches = [old + new for old, new in zip(mine.switches, counts, strict=True)]
    return found


def _block(maker: LoadMaker, sizes: Sizes, target: Target, workload: str) -> Block:
    """Measure one block. If a call fails, the report says so and the block is measured again; after the third failure
    the run fails."""
    for attempt in range(1, _ATTEMPTS + 1):
        target.mode.flush()
        try:
            return maker.block(target.mode.client, workload, target.address, target.port, sizes.count, sizes.warmup)
        except CannotRunError as error:
            if attempt == _ATTEMPTS:
                raise
            target.mode.notes.append(f"{target.mode.name}: a block was measured again: {error}")
    raise AssertionError("unreachable")


def limit(found: Taken, figure: Callable[[Found], Sequence[float]] = lambda one: one.medians) -> tuple[float, ...]:
    """`direct` in each round: the mean of its blocks before and after the other targets."""
    ends = [figure(one) for target, one in found.items() if target.mode.name == "direct"]
    return tuple(statistics.fmean(values) for values in zip(*ends, strict=True))


def result(target: Target, found: Taken, workload: str, services: int, unit: str = "us") -> Result:
    """The row of one target. The baseline of `direct` is its own first block of each round."""
    mine = found[target]
    direct = target.mode.name == "direct"
    base = next(one for other, one in found.items() if other.mode.name == "direct").medians if direct else limit(found)
    pods = {other.mode: one.medians for other, one in found.items() if other.metric == "latency_pod"}
    pod = () if target.metric == "latency_pod" else pods.get(target.mode, ())
    extra = {"switches": mine.switches}
    return Result(
        target.mode.name, workload, services, target.metric, unit, mine.samples, mine.medians, base, pod, extra
    )


def direct_target(mode: Mode, metric: str = "latency") -> Target:
    """Pod to pod on the node without any programs or rules."""
    return Target(mode, metric, real_backends(1)[0].address, TARGET_PORT)


def pod_target(mode: Mode) -> Target:
    """Pod to pod on the node of a mode."""
    return direct_target(mode, "latency_pod")


def service_targets(mode: Mode, model: ServiceModel, protocol: str) -> list[Target]:
    """The measured Services of a mode. The middle one comes first: it represents the mode."""
    found = []
    names = [name for name, _ in model.places] if mode.ordered else ["middle"]
    for place in sorted(names, key=lambda name: name != "middle"):
        service = model.at(place, protocol)
        metric = "latency" if place == "middle" else f"latency_{place}"
        found.append(Target(mode, metric, service.cluster_ip, service.port))
    return found
