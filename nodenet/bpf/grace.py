"""Waits until all eBPF programs that run now have ended.

The kernel does this (synchronize_rcu) before it returns from an update of an array of maps, so that "all programs
that could be running use the new map value" (maybe_wait_bpf_programs in kernel/bpf/syscall.c, since Linux 4.19). So an
update of a small map of our own is the wait. It takes 5 to 30 ms without CPU time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from nodenet.bpf import libbpf

_ARRAY, _ARRAY_OF_MAPS = 2, 12


class ProgramsGrace:
    """The grace periods of the programs of this kernel (nodenet.reconcile.grace). Raises OSError if the maps cannot be
    created."""

    def __init__(self) -> None:
        self._inner = _create(_ARRAY, b"nn_inner", 0)
        self._outer = _create(_ARRAY_OF_MAPS, b"nn_outer", self._inner)
        self._thread = ThreadPoolExecutor(1, "grace")
        self._then: Callable[[], None] | None = None
        self._last: Future[None] | None = None

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self._outer)
        os.close(self._inner)

    def begin(self, then: Callable[[], None]) -> None:
        """As in nodenet.reconcile.grace.Grace. A grace period that was begun earlier ends earlier."""
        self._then = then
        self._last = self._thread.submit(self._run, then)

    def wait(self) -> None:
        """As in nodenet.reconcile.grace.Grace. If the wait of `begin` failed, it is tried again here."""
        if self._last is None:
            return
        try:
            self._last.result()
        except OSError:
            if self._then is not None:
                self._run(self._then)
        self._last = None

    def _run(self, then: Callable[[], None]) -> None:
        wait_for_programs(self._outer, self._inner)
        then()


def wait_for_programs(outer: int, inner: int) -> None:
    """Return when all programs that ran at the time of the call have ended. Raises OSError."""
    key, value = (0).to_bytes(4, "little"), inner.to_bytes(4, "little")
    libbpf.check(libbpf.lib().bpf_map_update_elem(outer, key, value, 0), "wait for running programs")


def _create(kind: int, name: bytes, inner: int) -> int:
    options = libbpf.MapCreateOptions(sz=ctypes.sizeof(libbpf.MapCreateOptions), inner_map_fd=inner)
    result = libbpf.lib().bpf_map_create(kind, name, 4, 4, 1, ctypes.byref(options))
    return libbpf.check(result, f"create map {name.decode()}")
