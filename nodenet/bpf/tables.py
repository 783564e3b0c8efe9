"""BPF maps as typed tables: read and write the records that nodenet.tables declares."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nodenet import abi, tables
from nodenet.bpf import libbpf
from nodenet.bpf.rawtable import RawTable
from nodenet.errors import TableFullError

_MMAPABLE = 1 << 10
_WORD = 8


def _larger(name: str) -> str:
    key = tables.MAPS[name].size.key
    return f"raise {key} in the agent's configuration" if key else "its size cannot be configured"


class BpfTable(RawTable):
    """One pinned map. `items()` is not atomic: the kernel's programs may change the map meanwhile."""

    def __init__(self, name: str, path: Path) -> None:
        self.spec = tables.KEYED[name]
        super().__init__(name, path)
        self._size = int(self.info.value_size)
        # An array whose memory we can write directly: with one store of 8 bytes, which a program sees whole. A system
        # call copies the value, and programs may see half of it.
        is_mapped = self.info.map_flags & _MMAPABLE
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE) if is_mapped and self._size == _WORD else None

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
        super().close()

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all records. In a per-CPU map the value is a list with one value per CPU."""
        for key, value in self.raw():
            yield self.spec.key.unpack(key), self._decode(value)

    def get(self, key: abi.Record) -> Any:
        """The value of a key, or None."""
        value = self.lookup(key.pack())
        return None if value is None else self._decode(value)

    def _decode(self, value: bytes) -> Any:
        if not self._percpu:
            return self.spec.value.unpack(value)
        size, stride = self.info.value_size, self._stride
        return [self.spec.value.unpack(value[at : at + size]) for at in range(0, len(value), stride)]

    def update(self, key: abi.Record, value: abi.Record) -> None:
        """Insert or replace. Raises TableFullError or OSError with the names of map and key."""
        packed = value.pack()
        if len(packed) != self._size:
            raise TypeError(f"map {self.name}: expected a value of {self._size} bytes, got {value}")
        if self._memory is not None:
            ctypes.c_uint64.from_buffer(self._memory).value = int.from_bytes(packed, "little")
            return
        result = self._lib.bpf_map_update_elem(self.fd, key.pack(), packed, 0)
        if result == -errno.E2BIG or result == -errno.ENOSPC:
            raise TableFullError(
                f"map {self.name} is full ({self.max_entries} entries): no room for {key}; "
                f"{tables.MAPS[self.name].full}",
                _larger(self.name),
            )
        libbpf.check(result, f"map {self.name}: update {key}")

    def update_many(self, entries: Sequence[tuple[abi.Record, abi.Record]]) -> int:
        """Insert or replace in this order. Returns how many were made: `update` of the next one tells why it failed.
        0 if the kernel has no batches for this type of map."""
        if self._memory is not None or self._percpu:
            return 0
        return self.insert_in_order([(key.pack(), value.pack()) for key, value in entries])

    def delete(self, key: abi.Record) -> None:
        """Delete. Not an error if the key does not exist. Raises OSError with the names of map and key."""
        result = self._lib.bpf_map_delete_elem(self.fd, key.pack())
        if result != -errno.ENOENT:
            libbpf.check(result, f"map {self.name}: delete {key}")
