"""Keeps a matrix over many pods from filling the kernel's neighbour table, which all network namespaces share.

A pod that sends to another pod of its node gets an entry for it, which stays for about 30 seconds. Beyond gc_thresh3
entries the kernel resolves no more addresses and drops the packets, which looks like a connection that policy denies.
(net/core/neighbour.c: neigh_alloc, neigh_forced_gc.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodenet.link import netns

# The kernel's default.
_LIMIT = 1024
# The share of the limit that a matrix may use, because other programs use the table too.
_SHARE = 0.6
_STATISTICS = (Path("/proc/net/stat/arp_cache"), Path("/proc/net/stat/ndisc_cache"))


def limit() -> int:
    path = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    return int(path.read_text()) if path.exists() else _LIMIT


def waves(pods: Sequence[Mapping[str, Any]], room: int) -> Iterator[list[Mapping[str, Any]]]:
    """Split the sources of a matrix into groups that fit into the table if it is flushed between them. Pure. `room` is
    the table's limit.

    For each other pod on the node, a source adds two entries: one in its own namespace and one in that pod's.
    """
    on_node = Counter(pod["spec"].get("nodeName", "") for pod in pods)
    wave: list[Mapping[str, Any]] = []
    used = 0
    for pod in pods:
        entries = 2 * (on_node[pod["spec"].get("nodeName", "")] - 1)
        if wave and used + entries > room * _SHARE:
            yield wave
            wave, used = [], 0
        wave.append(pod)
        used += entries
    if wave:
        yield wave


def flush(namespaces: Iterable[Path]) -> None:
    """Delete the entries of these namespaces. The kernel resolves the addresses again when it needs them."""
    for path in namespaces:
        netns.run(path, ["ip", "neigh", "flush", "all"], capture_output=True)


def overflows() -> int:
    """How often the table was full since the machine started."""
    return sum(_overflows(path.read_text()) for path in _STATISTICS if path.exists())


def _overflows(text: str) -> int:
    """Sum the column table_fulls. The text has a line of column names, then a line of hexadecimal numbers per CPU."""
    head, *lines = (line.split() for line in text.splitlines())
    if "table_fulls" not in head:
        return 0
    return sum(int(line[head.index("table_fulls")], 16) for line in lines)
