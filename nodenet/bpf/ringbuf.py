"""The kernel's events: one reader per ring buffer, raw records out, a bounded number at a time."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from nodenet.bpf import libbpf

# Records that one `consume` hands out: a flood of events must not hold up the event loop.
BATCH = 1024


class EventReader:
    """`fd` becomes readable when there are events; `consume()` hands raw records to `receive`.

    `receive` must not raise: it is called from C.
    """

    def __init__(self, path: Path, receive: Callable[[bytes], None]) -> None:
        self._lib = libbpf.lib()
        self._map_fd = libbpf.obj_get(str(path))

        def callback(_context: int | None, data: int, size: int) -> int:
            receive(ctypes.string_at(data, size))
            self._left -= 1
            # A negative number ends the walk; this record counts as taken.
            return 0 if self._left > 0 else -errno.EAGAIN

        self._left = BATCH
        self._callback = libbpf.RingCallback(callback)
        self._ring = self._lib.ring_buffer__new(self._map_fd, self._callback, None, None)
        if not self._ring:
            libbpf.check(None, f"ring buffer {path}")
        self.fd: int = self._lib.ring_buffer__epoll_fd(self._ring)

    def consume(self) -> bool:
        """At most BATCH records; whether there may be more. Raises OSError."""
        self._left = BATCH
        result = self._lib.ring_buffer__consume(self._ring)
        if result == -errno.EAGAIN:
            return True
        libbpf.check(result, "ring buffer")
        return False

    def close(self) -> None:
        self._lib.ring_buffer__free(self._ring)
        os.close(self._map_fd)
