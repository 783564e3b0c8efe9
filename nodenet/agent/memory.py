"""Keeps the C library's heap small, and the garbage collector's pauses short.

glibc gives threads heaps ("arenas") of their own, up to eight for each CPU, and keeps what was freed in them. Each of
the agent's 30 threads works now and then, so the heaps filled one after the other: the soak's agent grew by 20 MiB in
an hour although Python's own objects did not. Threads of Python wait for the interpreter anyway, so two heaps are
enough.

Source: mallopt(3), malloc_trim(3), Python's gc module.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

TRIM_SECONDS = 60.0

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2
# Bytes. Blocks of this size get pages of their own. Set, the limit stays: glibc raises it otherwise up to 32 MiB, and
# large tables then fragment the heap.
_LARGE = 1 << 20


def limit_arenas() -> bool:
    """Before the first thread starts. False where the C library has no such limits (musl): nothing is changed then."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    options = ((_M_ARENA_MAX, _ARENAS), (_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE))
    accepted = [libc.mallopt(option, value) for option, value in options]
    return all(accepted)


async def keep_trimmed() -> None:
    """Until cancelled: give pages back that hold nothing. A trim of some 50 MiB takes a few milliseconds in a worker
    thread and does not hold the interpreter."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(libc.malloc_trim, 0)


def freeze_start() -> None:
    """Once the agent is ready: take what is there out of the collector's sight. With 10,000 pods a full collection
    stops every thread for 80 to 140 ms; now it looks at what came later. Objects are still freed as soon as nothing
    refers to them; only cycles among those of the start are not found any more, and so they are collected here."""
    gc.collect()
    gc.freeze()
