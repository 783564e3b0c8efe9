"""Tracing of the host's own stack with BCC: what happens to packets outside our programs."""
