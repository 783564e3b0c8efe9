"""The limits of the C library's heap, in a process of their own: they hold for a process's whole life."""

from __future__ import annotations

import subprocess
import sys

# Threads that are alive at the same time each take a heap of their own if they may.
_THREADS = """
import ctypes, sys, threading
from nodenet.agent.memory import limit_arenas
assert sys.argv[1] == "free" or limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(12)
places = set()
def work():
    for _ in range(20):
        places.add(libc.malloc(1000) >> 26)
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(places))
"""


def heaps(how: str) -> int:
    """In how many regions of 64 MiB, the size of an arena, twelve threads got their memory."""
    done = subprocess.run([sys.executable, "-c", _THREADS, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_threads_share_two_heaps() -> None:
    assert heaps("free") > 4, "the C library would give each its own"
    assert heaps("limited") <= 3


def test_after_the_start_a_full_collection_does_not_look_at_what_is_there() -> None:
    script = """
import gc
from nodenet.agent.memory import freeze_start
table = [[number] for number in range(100_000)]
before = len(gc.get_objects())
freeze_start()
print(before, len(gc.get_objects()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100_000 > 1000 > after
