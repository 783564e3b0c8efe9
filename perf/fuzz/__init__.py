"""A fuzzer of the packet parser. A real kernel delivers the packets that the programs pass, and a model of the policy
checks what was delivered."""
