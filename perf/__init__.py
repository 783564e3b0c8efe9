"""The benchmark, the virtual machines and the kernel matrix: part of the wheel.

perf.fuzz is not: it works on the C sources of a checkout and shows frames with scapy, a dependency of development.
"""
