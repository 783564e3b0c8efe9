"""Traces the host's network stack with BCC: what happens to packets outside our programs."""
