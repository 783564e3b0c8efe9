"""Runs the benchmark's modes in a process of its own, since they take mounts of their own: prints what it saw as JSON.

    python perf_helper.py MODE

Programs three Services, calls each through its address, changes one's endpoint and clears everything again.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nodenet.errors import NodenetError
from perf import load
from perf.ebpf import Ebpf
from perf.load import LoadMaker
from perf.modes import real_backends, spare_backend, timed_update
from perf.node import own_cgroup, own_mounts
from perf.run import MODES
from perf.services import build

CACHE = Path("/var/cache/nodenet")


def main(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(own_mounts())
        Ebpf.surroundings = (folder, stack.enter_context(own_cgroup()), CACHE, 1024)
        maker = stack.enter_context(LoadMaker(load.build(CACHE)))
        mode = MODES[name](stack, maker, f"test{os.getpid()}", 2, None)
        model = build(3, 2, real_backends(2), udp=True)
        mode.program(model)
        for place, _ in model.places:
            for protocol, workload in (("tcp", "crr"), ("udp", "udp")):
                service = model.at(place, protocol)
                samples = maker.block(mode.client, workload, service.cluster_ip, service.port, 20, 1)
                found[f"{place}/{protocol}"] = len(samples.values)
        single = model.with_backends("middle", real_backends(1))
        mode.program(single)
        away = single.with_backends("middle", (spare_backend(),))
        found["update"], _ = timed_update(mode, away, "middle", "B", 10)
        found["back"], _ = timed_update(mode, single, "middle", "A", 10)
        mode.flush()
        mode.clear()
        service = model.at("middle")
        try:
            with maker.until(mode.client, service.cluster_ip, service.port, "A", 1):
                found["cleared"] = False
        except NodenetError:
            found["cleared"] = True
        mode.program(model)
        found["again"] = len(maker.block(mode.client, "crr", service.cluster_ip, service.port, 5, 1).values)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
