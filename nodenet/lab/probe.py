"""Makes real connections between a lab's pods: one, or from every pod to every pod. The prober runs inside the source
pods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from netpolicy.matrix import Cell
from netpolicy.types import Protocol
from nodenet.errors import CannotRunError
from nodenet.lab import execute, find, neighbours, pods, process
from nodenet.lab.pods import Port
from nodenet.lab.sandbox import PYTHON

Object = Mapping[str, Any]

_PROBER = Path(__file__).with_name("prober.py")
# Seconds that an attempt waits. Denied packets are dropped without an answer, so a denied cell takes all attempts.
TIMEOUT = 1.0
ATTEMPTS = 2
# Prober processes at the same time. They spend most of their time waiting.
_PARALLEL = 16
# Seconds that a prober may need in addition to all attempts of all its batches.
_SLACK = 60.0


class Target(NamedTuple):
    address: str
    port: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one probe. `refused`: a packet arrived and the answer was that the port is closed. `unsupported`:
    this kernel does not support the protocol, so nothing was sent.
    """

    outcome: str
    answer: str | None
    ms: float
    error: str

    @property
    def allowed(self) -> bool:
        """True if policy allowed it. A refusal counts as allowed, because the packet has passed policy before."""
        return self.outcome in ("answered", "refused")

    @property
    def supported(self) -> bool:
        return self.outcome != "unsupported"


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of a matrix. `unsupported`: ports whose protocol this kernel does not support; they have no cells.
    `left_out`: pods without an address, with the reason if their status has one.
    """

    cells: list[Cell]
    unsupported: tuple[Port, ...]
    left_out: tuple[str, ...]


def probe(
    lab: str, source: Object, targets: Sequence[Target], *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS
) -> list[Outcome]:
    """Connect from inside `source` to all targets at the same time. Raises CannotRunError if the pod does not run."""
    if not targets:
        return []
    order = {"timeout": timeout, "attempts": attempts, "targets": [target._asdict() for target in targets]}
    pipe = subprocess.PIPE
    prober = process.spawn(
        execute.place(lab, source), [*PYTHON, str(_PROBER)], env={}, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        out, err = prober.communicate(
            json.dumps(order).encode(), _SLACK + timeout * attempts * (1 + len(targets) // 512)
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"pod {find.full_name(source)}: the prober does not end") from error
    finally:
        prober.kill()
        prober.wait()
    if prober.returncode != 0:
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise CannotRunError(f"pod {find.full_name(source)}: the prober failed: {last}")
    return [Outcome(found["outcome"], found["answer"], found["ms"], found["error"]) for found in json.loads(out)]


def survey(
    lab: str,
    everything: Iterable[Object],
    asked: Sequence[Port] | None,
    *,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
) -> Survey:
    """Probe every pod from every other one, sorted by name. Uses the ports `asked`, or if None the declared ports of
    the destination.

    All addresses of a dual-stack pod are probed. Its cell is allowed if all of them are.
    """
    alive = sorted((pod for pod in everything if not pods.finished(pod)), key=find.full_name)
    ready = [pod for pod in alive if pods.addresses(pod)]
    unsupported: set[Port] = set()

    def row(source: Object) -> list[Cell]:
        plan = [
            (destination, port, Target(address, port.number, port.protocol))
            for destination in ready
            if destination is not source
            for port in (pods.ports(destination) if asked is None else asked)
            for address in pods.addresses(destination)
        ]
        outcomes = probe(lab, source, [target for _, _, target in plan], timeout=timeout, attempts=attempts)
        merged: dict[tuple[str, Port], bool] = {}
        for (destination, port, _), outcome in zip(plan, outcomes, strict=True):
            if not outcome.supported:
                unsupported.add(port)
                continue
            key = (find.full_name(destination), port)
            merged[key] = merged.get(key, True) and outcome.allowed
        name = find.full_name(source)
        return [Cell(name, to, p.number, Protocol(p.protocol), allowed) for (to, p), allowed in merged.items()]

    cells: list[Cell] = []
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for number, wave in enumerate(neighbours.waves(ready, neighbours.limit())):
            if number:
                neighbours.flush(execute.place(lab, pod).netns for pod in ready)
            cells += [cell for found in pool.map(row, wave) for cell in found]
    return Survey(cells, tuple(sorted(unsupported)), tuple(_why(pod) for pod in alive if not pods.addresses(pod)))


def _why(pod: Object) -> str:
    reason = pods.waiting_message(pod)
    return find.full_name(pod) + (f" ({reason})" if reason else "")
