"""Virtual machines: run a command with a Debian cloud kernel in QEMU's emulator, on the files of this machine.

`run_in_vm("6.12", ["uname", "-r"])` is the whole interface. The guest sees the host's root folder read-only, below a
writable layer of its own. So the project's programs run there without changes, and no write reaches the host. Method:
docs/kernels.md.
"""

from perf.vm.kernels import CHOICES, Kernel, get_kernel, names
from perf.vm.machine import VmResult, cannot_run, run_in_vm

__all__ = ["CHOICES", "Kernel", "VmResult", "cannot_run", "get_kernel", "names", "run_in_vm"]
