"""Tries cases on the programs and on two real kernels: one gets all frames, the other those that the programs pass."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from perf.fuzz.datapath import Datapath, Loads
from perf.fuzz.model import reached, trespass
from perf.fuzz.parts import TAG
from perf.fuzz.receiver import Delivery, Receiver
from perf.fuzz.world import BY_NAME, Case, Frame

BATCH = 200  # cases
_REDUCE_SECONDS = 15.0  # time limit to reduce one finding
_numbers = itertools.count()
Step = tuple[str, Frame]  # the track that a frame takes


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding with the fewest frames that reproduce it. `what`: how a packet passed against policy, or what was
    lost."""

    what: str
    kind: str
    steps: tuple[Step, ...]

    @property
    def way(self) -> str:
        """The kind of the finding, to group equal ones."""
        return self.what.partition(" (")[0]

    def as_json(self) -> str:
        frames = [{"track": track, "gso": frame.gso_size, "hex": frame.data.hex()} for track, frame in self.steps]
        return json.dumps({"what": self.what, "kind": self.kind, "frames": frames}, indent=1) + "\n"


def steps_from(path: Path) -> tuple[Step, ...]:
    """The frames of a saved finding. Raises ValueError or KeyError for an invalid file."""
    found = json.loads(path.read_text())
    return tuple((entry["track"], Frame(bytes.fromhex(entry["hex"]), entry["gso"])) for entry in found["frames"])


@dataclass(slots=True)
class Tally:
    """The counts of a run. `open_`: without programs. `guarded`: behind the programs."""

    cases: int = 0
    frames: int = 0
    passed: int = 0
    open_deliveries: int = 0
    open_sockets: int = 0
    guarded_deliveries: int = 0
    guarded_sockets: int = 0
    denied_in_open: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    tagged: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Search:
    """The programs of one build, and two receivers. Namespaces and maps belong to `stack`."""

    def __init__(self, stack: ExitStack, loads: Loads) -> None:
        self.tally = Tally()
        self._loads = loads
        self.datapath = stack.enter_context(loads.fresh())
        self._open = Receiver(stack, _name())
        self._guarded = Receiver(stack, _name())
        self._revision = 0

    def batch(self, cases: Sequence[Case]) -> tuple[list[Delivery], list[Case]]:
        """Run a batch. Returns the deliveries against policy, and the allowed cases that did not arrive."""
        tally = self.tally
        self._revision += 2
        self.datapath.revision(self._revision)
        self.datapath.prime()
        steps = [(case.track, frame) for case in cases for frame in case.frames]
        passed = _through(self.datapath, steps)
        everything = self._open.exchange([frame for _, frame in steps])
        guarded = self._guarded.exchange(passed)
        tally.cases += len(cases)
        tally.frames += len(steps)
        tally.passed += len(passed)
        for case in cases:
            tally.kinds[case.kind] = tally.kinds.get(case.kind, 0) + 1
        tally.open_deliveries += len(everything)
        tally.guarded_deliveries += len(guarded)
        tally.denied_in_open += sum(1 for delivery in everything if trespass(delivery))
        tally.open_sockets = self._open.sockets + self._open.answers
        tally.guarded_sockets = self._guarded.sockets + self._guarded.answers
        return [delivery for delivery in guarded if trespass(delivery)], self._lost(cases, everything, guarded)

    def _lost(self, cases: Sequence[Case], everything: list[Delivery], guarded: list[Delivery]) -> list[Case]:
        wanted = {case.tag: case for case in cases if case.tag}
        arrived = _tags(wanted, guarded)
        self.tally.tagged += len(arrived)
        # If the kernel without programs does not deliver a case either, the programs are not the cause.
        return [case for tag, case in wanted.items() if tag not in arrived and tag in _tags(wanted, everything)]

    def replayed(self, steps: Sequence[Step]) -> tuple[Delivery | None, bool]:
        """The first delivery against policy, and whether a kernel without programs delivers what policy denies."""
        self.datapath.prime()
        guarded = self._guarded.exchange(_through(self.datapath, steps))
        open_ = self._open.exchange([frame for _, frame in steps])
        return next(filter(trespass, guarded), None), any(map(trespass, open_))

    def first_trespass(self, steps: Sequence[Step]) -> Delivery | None:
        """Run frames through newly loaded programs into a new receiver. Returns the first delivery against policy."""
        with ExitStack() as stack:
            receiver = Receiver(stack, _name())
            datapath = stack.enter_context(self._loads.fresh())
            return next(filter(trespass, receiver.exchange(_through(datapath, steps))), None)

    def explain(self, cases: Sequence[Case], known: Collection[str]) -> list[Finding]:
        """The cases of a batch with deliveries against policy of a kind (`way_of`) that is not in `known`, each reduced
        to the fewest frames."""
        found: dict[str, Finding] = {}
        with ExitStack() as stack:
            datapath = stack.enter_context(self._loads.fresh())
            receiver = Receiver(stack, _name())
            for case in cases:
                steps = tuple((case.track, frame) for frame in case.frames)
                past = [d for d in receiver.exchange(_through(datapath, steps)) if trespass(d)]
                ways = [way for delivery in past if (way := way_of(delivery)) not in known and way not in found]
                if not ways:
                    continue
                if self.first_trespass(steps) is None:
                    # The case alone does not reproduce it; it depends on earlier cases. Keep the whole batch.
                    steps = tuple((case.track, frame) for case in cases for frame in case.frames)
                finding = self.minimal(case.kind, steps)
                if finding is not None:
                    found[ways[0]] = finding
        return list(found.values())

    def minimal(self, kind: str, steps: tuple[Step, ...]) -> Finding | None:
        """Remove frames that are not needed (delta debugging), within a time limit. None: it cannot be reproduced."""
        deadline = time.monotonic() + _REDUCE_SECONDS
        delivery = self.first_trespass(steps)
        if delivery is None:
            return None
        size = max(len(steps) // 2, 1)
        while True:
            for at in range(0, len(steps), size):
                if time.monotonic() > deadline:
                    continue
                fewer = steps[:at] + steps[at + size :]
                if fewer and (smaller := self.first_trespass(fewer)) is not None:
                    steps, delivery = fewer, smaller
                    break
            else:
                if size == 1 or time.monotonic() > deadline:
                    track = steps[-1][0]
                    return Finding(f"{way_of(delivery)} ({track}: {reached(delivery)})", kind, steps)
                size = max(size // 2, 1)


def _name() -> str:
    """A name for a namespace and its interface. Never used again, because the kernel removes interfaces with a
    delay."""
    return f"fuzz{next(_numbers)}"


def way_of(delivery: Delivery) -> str:
    """The kind of a delivery against policy: IP version and reason, without details."""
    return f"IPv{delivery.version}: {trespass(delivery).partition(' (')[0]}"


def _through(datapath: Datapath, steps: Iterable[Step]) -> list[Frame]:
    passed = []
    for track, frame in steps:
        data = datapath.run(BY_NAME[track].program, frame)
        if data is not None:
            passed.append(Frame(data, frame.gso_size))
    return passed


def _tags(wanted: dict[bytes, Case], deliveries: Iterable[Delivery]) -> set[bytes]:
    found = set()
    for delivery in deliveries:
        at = delivery.data.find(TAG)
        if at >= 0 and delivery.data[at : at + 8] in wanted:
            found.add(delivery.data[at : at + 8])
    return found
