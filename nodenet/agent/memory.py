"""Keeps the C library's heap small, and the garbage collector's work and pauses short.

glibc gives threads their own heaps ("arenas"), up to eight per CPU, and keeps freed memory in them. Each of the agent's
30 threads works now and then, so that the heaps filled one after the other: in the soak the agent grew by 20 MiB in an
hour although Python's objects did not. Python threads wait for the interpreter lock anyway, so two heaps are enough.

Source: mallopt(3), malloc_trim(3), Python's gc module.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

TRIM_SECONDS = 60.0

# For gc.set_threshold: new objects until a young collection, young ones until a middle one, those until a full one.
# Python's defaults are 700, 10, 10.
_COLLECT_AFTER = (10_000, 20, 20)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2
# Bytes. Blocks of at least this size get their own pages. Setting the limit also keeps glibc from raising it, up to
# 32 MiB, after which large tables would fragment the heap.
_LARGE = 1 << 20


def limit_arenas() -> bool:
    """Limit the heaps. Call it before the first thread starts. Returns False if the C library has no such limits
    (musl); then nothing is changed."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    options = ((_M_ARENA_MAX, _ARENAS), (_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE))
    accepted = [libc.mallopt(option, value) for option, value in options]
    return all(accepted)


def collect_rarely() -> None:
    """Run the garbage collector less often. Reference counting frees nearly everything, and a compilation keeps what it
    makes, so the collector walked over live objects for 40 % of a compilation from nothing. A young collection takes
    about 0.5 ms now, a middle one 10 ms."""
    gc.set_threshold(*_COLLECT_AFTER)


async def keep_trimmed() -> None:
    """Return unused pages to the kernel regularly, until cancelled. A trim of about 50 MiB takes a few milliseconds in
    a worker thread and does not hold the interpreter lock."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(libc.malloc_trim, 0)


def freeze_start() -> None:
    """Exclude all current objects from the garbage collector. Call it when the agent is ready. With 10,000 pods a full
    collection would stop all threads for 80 to 140 ms; now it checks only later objects. Reference counting still frees
    the excluded objects. Only cycles among them are not found any more, so they are collected here first."""
    gc.collect()
    gc.freeze()
