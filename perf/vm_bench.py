"""`nodenet bench --vm KERNEL`: the same modes in a virtual machine, counted in instructions per connection.

The guest's clock advances by one nanosecond per instruction, so a latency measured in the guest is a number of
instructions. It repeats within 0.3 %, independently of the load of this machine. Reports never show it as a latency.

On the host, `main` boots the machine. In the guest, `python -m perf.vm_bench SETTINGS` measures and prints the report.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from click import get_current_context
from click.core import ParameterSource

from nodenet.bpf import build
from nodenet.errors import BadInputError, CannotRunError
from perf import counted, load
from perf.vm import run_in_vm
from perf.vm.machine import VmError

ROOT = Path(__file__).parents[1]
CACHE = Path("/var/cache/nodenet")
# Counts need few repetitions, and each takes ten times as long as outside.
MOST_ROUNDS, MOST_SAMPLES = 2, 150
TIMEOUT = 3600.0
# Seconds of the guest's clock, which advances fast while a tool waits for its file.
_LIMIT = 600.0
# Only workloads that use the CPU all the time give meaningful counts: the guest's clock jumps during a wait.
_COUNTED = ("crr", "rr", "udp")
# Memory can be measured in a virtual machine too, but in a separate run, because the memory controller also charges the
# packets of pods.
_MEMORY = "memory"
_PROGRESS = "@ "
_CONTROLLER = "echo +memory >/sys/fs/cgroup/cgroup.subtree_control || exit 1;"
_MODULES = "modprobe -a br_netfilter nf_conntrack ip_vs ip_vs_rr 2>/dev/null"


def main(options: dict[str, Any]) -> dict[str, Any]:
    """Run the benchmark in a virtual machine. `options` are those of `nodenet bench`. Returns the report.

    Raises BadInputError for options that a virtual machine does not support, CannotRunError if it cannot run.
    """
    settings = _settings(options)
    build.build_every_variant(CACHE)
    load.build(CACHE)

    def line(text: str) -> None:
        # Do not show progress lines with seconds of the guest, whose clock jumps while a tool waits for a file.
        if text.startswith(_PROGRESS) and " Services in " not in text and not options["quiet"]:
            print(f"[vm] {text.removeprefix(_PROGRESS)}", file=sys.stderr, flush=True)

    words = [sys.executable, "-m", "perf.vm_bench", json.dumps(settings)]
    apart = settings["workloads"] == [_MEMORY]
    command = f"{_MODULES}; {_CONTROLLER if apart else ''} exec {shlex.join(words)}"
    result = run_in_vm(options["vm"], command, icount=not apart, timeout=TIMEOUT, cwd=ROOT, on_line=line)
    last = result.output.rstrip().rpartition("\n")[2]
    if result.status != 0 or not last.startswith("{"):
        raise VmError(
            f"kernel {result.kernel.release}: the benchmark ended with exit status {result.status}",
            "\n".join(result.console.splitlines()[-20:]),
        )
    report: dict[str, Any] = json.loads(last)
    report["meta"]["seconds"] = round(result.seconds, 1)  # of this machine's clock
    return report


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The settings for perf.run in the guest, as JSON. Raises BadInputError if no workload remains."""
    modes = options["modes"].split(",")
    context = get_current_context(silent=True)
    if context is not None and context.get_parameter_source("modes") == ParameterSource.DEFAULT:
        modes.append("ipvs")
    asked = [word.strip() for word in options["workloads"].split(",")]
    wanted = [word for word in asked if word in _COUNTED] if asked != [_MEMORY] else asked
    if not wanted:
        raise BadInputError(
            f"--workloads: {options['workloads']}: with --vm only {', '.join(_COUNTED)} are counted, and memory "
            "is measured in a run of its own"
        )
    try:
        services = sorted({int(word.replace("_", "")) for word in options["services"].split(",")})
    except ValueError as error:
        raise BadInputError(f"--services: {options['services']}: expected whole numbers") from error
    return {
        "modes": [word.strip() for word in modes],
        "services": services,
        "workloads": wanted,
        "left_out": [word for word in asked if word not in _COUNTED],
        "backends": options["backends"],
        "rounds": min(options["rounds"], MOST_ROUNDS),
        "count": min(options["count"], MOST_SAMPLES),
    }


def inside(text: str) -> None:
    """Run in the guest and print the report as one line."""
    from perf.blocks import Sizes
    from perf.run import Settings, run

    given = json.loads(text)
    os.environ["CRR_CALL_SECONDS"] = str(int(TIMEOUT))
    settings = Settings(
        modes=tuple(given["modes"]),
        services=tuple(given["services"]),
        workloads=tuple(given["workloads"]),
        backends=given["backends"],
        cpu=0,
        limit=_LIMIT,
        sizes=Sizes(1, given["rounds"], given["count"], 1),
    )
    report = run(settings, lambda words: print(f"{_PROGRESS}{words}", flush=True))
    if given["workloads"] == [_MEMORY]:
        report["meta"]["notes"].append("in a virtual machine: bytes are bytes in there, times are not")
        report["meta"] |= {"noise": {}, "virtual": True}
    else:
        report = counted.counted(report, given["left_out"])
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        inside(sys.argv[1])
    except (BadInputError, CannotRunError) as problem:
        print(f"{problem}\n{problem.hint}", file=sys.stderr)
        sys.exit(problem.exit_code)
