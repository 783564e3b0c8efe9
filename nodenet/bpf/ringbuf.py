"""Reads raw records from a ring buffer, a limited number at a time."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from nodenet.bpf import libbpf

# The most records that one `consume` passes on, so that many events do not block the event loop.
BATCH = 1024


class EventReader:
    """`fd` becomes readable when there are events. `consume()` passes raw records to `receive`.

    `receive` must not raise: it is called from C.
    """

    def __init__(self, path: Path, receive: Callable[[bytes], None]) -> None:
        self._lib = libbpf.lib()
        self._map_fd = libbpf.obj_get(str(path))

        def callback(_context: int | None, data: int, size: int) -> int:
            receive(ctypes.string_at(data, size))
            self._left -= 1
            # A negative result stops libbpf after this record, which counts as consumed.
            return 0 if self._left > 0 else -errno.EAGAIN

        self._left = BATCH
        self._callback = libbpf.RingCallback(callback)
        self._ring = self._lib.ring_buffer__new(self._map_fd, self._callback, None, None)
        if not self._ring:
            libbpf.check(None, f"ring buffer {path}")
        self.fd: int = self._lib.ring_buffer__epoll_fd(self._ring)

    def consume(self) -> bool:
        """Pass on at most BATCH records. Returns True if there may be more. Raises OSError."""
        self._left = BATCH
        result = self._lib.ring_buffer__consume(self._ring)
        if result == -errno.EAGAIN:
            return True
        libbpf.check(result, "ring buffer")
        return False

    def close(self) -> None:
        self._lib.ring_buffer__free(self._ring)
        os.close(self._map_fd)
