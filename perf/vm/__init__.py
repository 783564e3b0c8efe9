"""Virtual machines: a command in a Debian cloud kernel under QEMU's emulator, on this machine's own files.

`run_in_vm("6.12", ["uname", "-r"])` is all of it. The guest sees the host's root folder read-only under a layer of
its own, so the project's programs run there as they are; nothing it writes reaches the host. Method: docs/kernels.md.
"""

from perf.vm.kernels import CHOICES, Kernel, get_kernel, names
from perf.vm.machine import VmResult, cannot_run, run_in_vm

__all__ = ["CHOICES", "Kernel", "VmResult", "cannot_run", "get_kernel", "names", "run_in_vm"]
