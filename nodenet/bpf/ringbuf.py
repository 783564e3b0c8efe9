"""The kernel's events: one reader per ring buffer, raw records out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from nodenet.bpf import libbpf


class EventReader:
    """`fd` becomes readable when there are events; `consume()` hands each raw record to `receive` and returns how many.

    `receive` must not raise: it is called from C.
    """

    def __init__(self, path: Path, receive: Callable[[bytes], None]) -> None:
        self._lib = libbpf.lib()
        self._map_fd = libbpf.obj_get(str(path))

        def callback(_context: int | None, data: int, size: int) -> int:
            receive(ctypes.string_at(data, size))
            return 0

        self._callback = libbpf.RingCallback(callback)
        self._ring = self._lib.ring_buffer__new(self._map_fd, self._callback, None, None)
        if not self._ring:
            libbpf.check(None, f"ring buffer {path}")
        self.fd: int = self._lib.ring_buffer__epoll_fd(self._ring)

    def consume(self) -> int:
        """Everything there is now. Raises OSError."""
        return libbpf.check(self._lib.ring_buffer__consume(self._ring), "ring buffer")

    def close(self) -> None:
        self._lib.ring_buffer__free(self._ring)
        os.close(self._map_fd)
