"""Access to one pinned map in bytes, for nodenet.bpf.tables and nodenet.bpf.carry."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from nodenet.bpf import libbpf

Entry = tuple[bytes, bytes]

_BATCH = 1024
_PERCPU_ARRAY = 6
_PERCPU_TYPES = (5, _PERCPU_ARRAY, 10)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
# Flags of bpf_map_update_elem.
_NOEXIST, _EXIST = 1, 2


class RawTable:
    """One pinned map. A read of all entries is not atomic: the kernel's programs may change the map meanwhile."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.fd = libbpf.obj_get(str(path))
        self.info = libbpf.info(self.fd, libbpf.MapInfo)
        self.max_entries = int(self.info.max_entries)
        self._lib = libbpf.lib()
        # None: not tried yet. LPM tries support batches from Linux 5.14, hash tables from 5.6.
        self._batches: bool | None = None
        self._percpu = self.info.type in _PERCPU_TYPES
        cpus = self._lib.libbpf_num_possible_cpus() if self._percpu else 1
        # Values of per-CPU maps are padded to 8 bytes each.
        self._stride = (self.info.value_size + 7) // 8 * 8 if self._percpu else self.info.value_size
        self._value_size = int(self._stride * cpus)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def percpu(self) -> bool:
        """True if each entry has a value for every CPU."""
        return self._percpu

    @property
    def batched(self) -> bool | None:
        """True if the kernel reads this type of map in batches; None: nothing was read yet."""
        return self._batches

    def raw(self) -> Iterator[Entry]:
        """Yield all entries, each key once. An array of counters always has all keys; those with only zeros are left
        out."""
        seen: set[bytes] = set()
        for chunk in self.chunks():
            for key, value in chunk:
                if key not in seen and (self.info.type != _PERCPU_ARRAY or any(value)):
                    seen.add(key)
                    yield key, value

    def chunks(self) -> Iterator[Sequence[Entry]]:
        """Yield all entries, about a thousand at a time. A key may come twice. Uses batches if the kernel supports them
        for this type of map: they are ten times faster and run without the interpreter lock."""
        return self._walk_chunks() if self._batches is False else self._read_batches()

    def _read_batches(self) -> Iterator[Sequence[Entry]]:
        size, key_size, value_size = _BATCH, int(self.info.key_size), self._value_size
        place, following = None, ctypes.create_string_buffer(max(key_size, 8))
        while True:
            keys = ctypes.create_string_buffer(key_size * size)
            values = ctypes.create_string_buffer(value_size * size)
            count = ctypes.c_uint32(size)
            result = self._lib.bpf_map_lookup_batch(self.fd, place, following, keys, values, count, None)
            if result == -errno.ENOSPC and size < self.max_entries:
                size *= 2  # ENOSPC: one bucket of the hash table has more entries than the buffer
                continue
            if result not in (0, -errno.ENOENT):
                if place is None:
                    self._batches = False
                    yield from self._walk_chunks()
                    return
                libbpf.check(result, f"map {self.name}: read")
            key_bytes, value_bytes = keys.raw, values.raw
            yield [
                (
                    key_bytes[index * key_size : (index + 1) * key_size],
                    value_bytes[index * value_size : (index + 1) * value_size],
                )
                for index in range(count.value)
            ]
            if result:
                return
            place = ctypes.create_string_buffer(following.raw, len(following))

    def _walk_chunks(self) -> Iterator[Sequence[Entry]]:
        entries = self._walk()
        while chunk := list(islice(entries, _BATCH)):
            yield chunk

    def _walk(self) -> Iterator[Entry]:
        """Yield all entries, key by key. If the current key is deleted meanwhile, the kernel starts from the
        beginning."""
        seen: set[bytes] = set()
        previous = None
        key = ctypes.create_string_buffer(self.info.key_size)
        # The limit of twice the size ends the walk even if the map changes all the time.
        for _ in range(2 * self.max_entries + 1):
            result = self._lib.bpf_map_get_next_key(self.fd, previous, key)
            if result == -errno.ENOENT:
                return
            libbpf.check(result, f"map {self.name}: next key")
            if key.raw not in seen:
                seen.add(key.raw)
                value = self.lookup(key.raw)
                if value is not None:
                    yield key.raw, value
            previous = ctypes.create_string_buffer(key.raw, len(key.raw))

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        # Each call needs its own buffer: several threads read one table, and ctypes releases the interpreter lock.
        value = ctypes.create_string_buffer(self._value_size)
        result = self._lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        libbpf.check(result, f"map {self.name}: lookup")
        return value.raw

    def insert_all(self, entries: Sequence[Entry]) -> None:
        """Insert or replace entries with one batch call. If the kernel refuses it, for example because this type of map
        has no batches, make one call per entry. Raises OSError."""
        for key, value in entries[self.insert_in_order(entries) :]:
            libbpf.check(self._lib.bpf_map_update_elem(self.fd, key, value, 0), f"map {self.name}: insert")

    def insert_in_order(self, entries: Sequence[Entry]) -> int:
        """Insert or replace entries with one batch call, in this order. Returns how many were made before the first
        failure; 0 if the kernel has no batches for this type of map."""
        keys = b"".join([key for key, _ in entries])
        values = b"".join([value for _, value in entries])
        if len(keys) != len(entries) * self.info.key_size or len(values) != len(entries) * self._value_size:
            raise TypeError(f"map {self.name}: keys or values of another size")
        count = ctypes.c_uint32(len(entries))
        if self._lib.bpf_map_update_batch(self.fd, keys, values, count, None) == 0:
            return len(entries)
        # The kernel sets the number that it made. It leaves the number as it was if it did not start.
        return int(count.value) if count.value < len(entries) else 0

    def add(self, key: bytes, value: bytes) -> bool:
        """Insert. Returns False if the key exists. Raises OSError."""
        result = self._lib.bpf_map_update_elem(self.fd, key, value, _NOEXIST)
        if result != -errno.EEXIST:
            libbpf.check(result, f"map {self.name}: add")
        return bool(result == 0)

    def replace(self, key: bytes, value: bytes) -> bool:
        """Replace. Returns False if the key does not exist. Raises OSError."""
        result = self._lib.bpf_map_update_elem(self.fd, key, value, _EXIST)
        if result != -errno.ENOENT:
            libbpf.check(result, f"map {self.name}: replace")
        return bool(result == 0)

    def remove(self, key: bytes) -> bool:
        """Remove; False when the key is not there. Raises OSError."""
        result = self._lib.bpf_map_delete_elem(self.fd, key)
        if result != -errno.ENOENT:
            libbpf.check(result, f"map {self.name}: remove")
        return bool(result == 0)

    def count(self) -> int:
        """The number of entries. It reads the whole map."""
        return sum(1 for _ in self.raw())
