"""The benchmark, the virtual machines and the kernel matrix: for a checkout, not part of the installed package."""
