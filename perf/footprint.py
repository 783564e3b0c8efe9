"""Measures the memory of the agent's user space for N Services. Run as a separate process, it prints bytes.

    python -m perf.footprint SERVICES BACKENDS

It has the same engine and tables as the agent, but no kernel maps. Their memory is measured separately.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import listings
from perf.ebpf import NODE, api_objects, group
from perf.modes import real_backends
from perf.nowhere import nowhere
from perf.services import build


def main() -> int:
    """Print the resident bytes of a process with the number of Services given on the command line."""
    count, backends = int(sys.argv[1]), int(sys.argv[2])
    objects = [api_objects(ports) for ports in group(build(count, backends, real_backends(backends)).services).values()]
    engine = Engine(LocalNode(NODE), nowhere(), NoPrograms())
    engine.feed(*listings(chain.from_iterable(objects)))
    del objects
    assert engine.run_once().writes
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(fields["VmRSS"].split()[0]) * 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
