"""Measures the resources of an agent, and finds out whether they grow."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet import tables
from nodenet.bpf.tables import BpfTable
from nodenet.lab import names, teardown
from nodenet.link import netns

# Maps that the agent fills. After the churn they must have as many entries as before. Programs fill the other maps.
COMPILED = tables.filled_by(tables.Writer.COMPILER)
_WRITTEN = tuple(name for name in tables.filled_by(tables.Writer.PROGRAMS) if name in tables.KEYED)
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one agent, `at` seconds after the start. Memory in KiB. `pid` 0: the agent did not run."""

    at: float
    node: str
    pid: int
    healthy: bool
    rss: int
    anonymous: int
    descriptors: int
    threads: int
    maps: dict[str, int]
    namespaces: int
    nsids: int


def take(nodenet: Sequence[str], lab: str, node: str, started: float) -> Figures:
    status = _status(nodenet, lab, node)
    pid = int(status.get("pid", 0))
    try:
        memory = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        rss, anonymous = (int(memory[name].split()[0]) for name in ("VmRSS", "RssAnon"))
        threads = int(memory["Threads"])
    except (OSError, KeyError):  # the agent was killed in the meantime
        pid = rss = anonymous = descriptors = threads = 0
    return Figures(
        at=round(time.monotonic() - started, 1),
        node=node,
        pid=pid,
        healthy=bool(status.get("healthy")),
        rss=rss,
        anonymous=anonymous,
        descriptors=descriptors,
        threads=threads,
        maps=counts(lab, node),
        namespaces=len(teardown.namespaces(lab)),
        nsids=_nsids(lab, node),
    )


def _status(nodenet: Sequence[str], lab: str, node: str) -> dict[str, Any]:
    """The agent's status, or {} if the agent does not answer."""
    command = [*nodenet, "status", "--lab", lab, "--node", node, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {}
    return found


def counts(lab: str, node: str) -> dict[str, int]:
    """The number of entries of each map. A map that is being replaced is left out."""
    folder = names.node_dir(lab, node) / "bpf" / "maps"
    found = {}
    for name in (*COMPILED, *_WRITTEN):
        try:
            with closing(BpfTable(name, folder / name)) as table:
                found[name] = table.count()
        except OSError:
            continue
    return found


def _nsids(lab: str, node: str) -> int:
    """The number of namespace ids (nsid) in the node's namespace: one for each peer namespace of an interface."""
    done = netns.run(names.node_netns(lab, node), ["ip", "netns", "list-id"], capture_output=True, text=True)
    return len(done.stdout.splitlines())


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """The slope of (second, value) by least squares, per hour."""
    count = len(samples)
    middle_at = sum(at for at, _ in samples) / count
    middle = sum(value for _, value in samples) / count
    below = sum((at - middle_at) ** 2 for at, _ in samples)
    return 3600 * sum((at - middle_at) * (value - middle) for at, value in samples) / below if below else 0.0


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of the agent that is never killed, after the warm-up. `judged` is False if there are too few
    samples."""

    mib_per_hour: float
    descriptors: tuple[int, int]  # maximum in the first and in the last quarter
    threads: tuple[int, int]
    judged: bool


_LEAST_SAMPLES = 12


def growth(figures: Sequence[Figures], warm_up: float) -> Growth:
    kept = [entry for entry in figures if entry.at >= warm_up and entry.pid]
    if len(kept) < 4:
        return Growth(0.0, (0, 0), (0, 0), False)
    quarter = max(len(kept) // 4, 1)
    first, last = kept[:quarter], kept[-quarter:]
    return Growth(
        mib_per_hour=round(slope([(entry.at, entry.rss / _KIB) for entry in kept]), 2),
        descriptors=(max(e.descriptors for e in first), max(e.descriptors for e in last)),
        threads=(max(e.threads for e in first), max(e.threads for e in last)),
        judged=len(kept) >= _LEAST_SAMPLES,
    )
