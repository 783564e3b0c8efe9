"""Measures one agent in a large cluster that consists of an API server only: `python -m perf.scale`."""
