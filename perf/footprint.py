"""What the agent's user space needs for N Services: run as a process of its own, prints bytes.

    python -m perf.footprint SERVICES BACKENDS

Store, compiler and the tables as the agent holds them, without kernel maps (their memory is told apart).
"""

from __future__ import annotations

import sys
from pathlib import Path

from nodenet import kinds
from nodenet.compile import Compiler, LocalNode
from nodenet.kinds import KINDS
from nodenet.store import Store
from perf.ebpf import NODE, api_objects, group
from perf.modes import real_backends
from perf.services import build


def main() -> int:
    """Print the resident bytes of a process that knows the Services given on the command line."""
    count, backends = int(sys.argv[1]), int(sys.argv[2])
    objects = [api_objects(ports) for ports in group(build(count, backends, real_backends(backends)).services).values()]
    store = Store()
    for kind in KINDS:
        store.replace(kind, [])
    store.replace(kinds.SERVICE, [service for service, _ in objects])
    store.replace(kinds.ENDPOINT_SLICE, [slice_ for _, slice_ in objects])
    del objects
    compiler = Compiler()
    desired, names = compiler.compile(store.snapshot(), LocalNode(NODE))
    # The reconcile loop keeps what the kernel holds: after the first run the same tables.
    assert desired.tables
    assert names.services
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(fields["VmRSS"].split()[0]) * 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
