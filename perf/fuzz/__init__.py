"""A fuzzer of the packet parser: a real kernel delivers what the programs pass, and policy is asked about that."""
