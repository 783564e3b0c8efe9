"""The kernel's neighbour table is one for all network namespaces: a matrix over many pods can fill it.

Each pod that talks to another one on its node has an entry for it, which stays for half a minute. Beyond gc_thresh3
entries the kernel resolves no further address and packets vanish, which would look like a denied connection.
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
# Of the limit: others use the table too.
_SHARE = 0.6
_STATISTICS = (Path("/proc/net/stat/arp_cache"), Path("/proc/net/stat/ndisc_cache"))


def limit() -> int:
    path = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    return int(path.read_text()) if path.exists() else _LIMIT


def waves(pods: Sequence[Mapping[str, Any]], room: int) -> Iterator[list[Mapping[str, Any]]]:
    """The sources of a matrix in groups that fit, with a flush between them. Pure; `room` is the table's limit.

    One source makes an entry for each pod on its node, and one of its own in each of them.
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
    """Forget the entries of these namespaces: they are resolved again when they are needed."""
    for path in namespaces:
        netns.run(path, ["ip", "neigh", "flush", "all"], capture_output=True)


def overflows() -> int:
    """How often the table was full, since the machine started."""
    return sum(_overflows(path.read_text()) for path in _STATISTICS if path.exists())


def _overflows(text: str) -> int:
    """One line of hexadecimal numbers for each processor, below the names of the columns."""
    head, *lines = (line.split() for line in text.splitlines())
    if "table_fulls" not in head:
        return 0
    return sum(int(line[head.index("table_fulls")], 16) for line in lines)
