"""The kernel edge: build the eBPF objects, load and pin them, read and write their maps, read their events."""
