"""The benchmark, the virtual machines and the kernel matrix: part of the wheel.

perf.fuzz is not part of it: it needs the C sources of a checkout, and scapy, a development dependency, to show frames.
"""
