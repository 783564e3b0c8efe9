"""BPF maps as typed tables: the records that nodenet.tables declares, in and out."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nodenet import abi, tables
from nodenet.bpf import libbpf
from nodenet.errors import TableFullError

_BATCH = 1024
_PERCPU_ARRAY = 6
_PERCPU_TYPES = (5, _PERCPU_ARRAY, 10)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH


def _larger(name: str) -> str:
    key = tables.MAPS[name].size.key
    return f"raise {key} in the agent's configuration" if key else "its size cannot be configured"


class BpfTable:
    """One pinned map. `items()` is a moment's view: a map that the kernel writes may change while it is read."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.spec = tables.KEYED[name]
        self.fd = libbpf.obj_get(str(path))
        self.info = libbpf.info(self.fd, libbpf.MapInfo)
        self.max_entries = int(self.info.max_entries)
        self._lib = libbpf.lib()
        # None: not tried yet. The trie has them from 5.14, hash tables from 5.6.
        self._batches: bool | None = None
        self._percpu = self.info.type in _PERCPU_TYPES
        cpus = self._lib.libbpf_num_possible_cpus() if self._percpu else 1
        # Values of per-CPU maps are padded to 8 bytes each.
        self._stride = (self.info.value_size + 7) // 8 * 8 if self._percpu else self.info.value_size
        self._value_size = int(self._stride * cpus)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def batched(self) -> bool | None:
        """Whether the kernel reads this type of map in batches; None: nothing was read yet."""
        return self._batches

    def raw(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry as bytes, each key once. Batches where the kernel has them for this type of map: ten times as
        quick, and the interpreter is free meanwhile. An array of counters has all its keys from the start: those that
        never counted are left out."""
        entries = self._walk() if self._batches is False else self._read_batches()
        if self.info.type != _PERCPU_ARRAY:
            return entries
        return (entry for entry in entries if any(entry[1]))

    def _read_batches(self) -> Iterator[tuple[bytes, bytes]]:
        seen: set[bytes] = set()
        size, key_size, value_size = _BATCH, int(self.info.key_size), self._value_size
        place, following = None, ctypes.create_string_buffer(max(key_size, 8))
        while True:
            keys = ctypes.create_string_buffer(key_size * size)
            values = ctypes.create_string_buffer(value_size * size)
            count = ctypes.c_uint32(size)
            result = self._lib.bpf_map_lookup_batch(self.fd, place, following, keys, values, count, None)
            if result == -errno.ENOSPC and size < self.max_entries:
                size *= 2  # one bucket of the hash table holds more than that
                continue
            if result not in (0, -errno.ENOENT):
                if place is None:
                    self._batches = False
                    yield from self._walk()
                    return
                libbpf.check(result, f"map {self.name}: read")
            key_bytes, value_bytes = keys.raw, values.raw
            for index in range(count.value):
                key = key_bytes[index * key_size : (index + 1) * key_size]
                if key not in seen:
                    seen.add(key)
                    yield key, value_bytes[index * value_size : (index + 1) * value_size]
            if result:
                return
            place = ctypes.create_string_buffer(following.raw, len(following))

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        """Key by key. When one vanishes under the reader, the kernel starts over."""
        seen: set[bytes] = set()
        previous = None
        key = ctypes.create_string_buffer(self.info.key_size)
        # Twice the size bounds the walk over a map that the kernel keeps changing.
        for _ in range(2 * self.max_entries + 1):
            result = self._lib.bpf_map_get_next_key(self.fd, previous, key)
            if result == -errno.ENOENT:
                return
            libbpf.check(result, f"map {self.name}: next key")
            if key.raw not in seen:
                seen.add(key.raw)
                value = self._lookup(key.raw)
                if value is not None:
                    yield key.raw, value
            previous = ctypes.create_string_buffer(key.raw, len(key.raw))

    def _lookup(self, key: bytes) -> bytes | None:
        # A buffer of its own for each call: several threads read one table, and ctypes lets others run meanwhile.
        value = ctypes.create_string_buffer(self._value_size)
        result = self._lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        libbpf.check(result, f"map {self.name}: lookup")
        return value.raw

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Every record. For a per-CPU map the value is the list of the CPUs' values."""
        for key, value in self.raw():
            yield self.spec.key.unpack(key), self._decode(value)

    def get(self, key: abi.Record) -> Any:
        """The value of a key, or None."""
        value = self._lookup(key.pack())
        return None if value is None else self._decode(value)

    def _decode(self, value: bytes) -> Any:
        if not self._percpu:
            return self.spec.value.unpack(value)
        size, stride = self.info.value_size, self._stride
        return [self.spec.value.unpack(value[at : at + size]) for at in range(0, len(value), stride)]

    def update(self, key: abi.Record, value: abi.Record) -> None:
        """Insert or replace. Raises TableFullError, or OSError, naming the map and the key."""
        result = self._lib.bpf_map_update_elem(self.fd, key.pack(), value.pack(), 0)
        if result == -errno.E2BIG or result == -errno.ENOSPC:
            raise TableFullError(
                f"map {self.name} is full ({self.max_entries} entries): no room for {key}; "
                f"{tables.MAPS[self.name].full}",
                _larger(self.name),
            )
        libbpf.check(result, f"map {self.name}: update {key}")

    def delete(self, key: abi.Record) -> None:
        """Remove; a key that is not there is fine. Raises OSError naming the map and the key."""
        result = self._lib.bpf_map_delete_elem(self.fd, key.pack())
        if result != -errno.ENOENT:
            libbpf.check(result, f"map {self.name}: delete {key}")

    def copy(self, other: BpfTable) -> int:
        """Insert every entry of another table with records of the same size; how many. Not for per-CPU maps."""
        copied = 0
        for key, value in other.raw():
            libbpf.check(self._lib.bpf_map_update_elem(self.fd, key, value, 0), f"map {self.name}: copy")
            copied += 1
        return copied

    def count(self) -> int:
        """Number of entries, by reading them."""
        return sum(1 for _ in self.raw())
