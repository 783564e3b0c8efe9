"""One TCP connection through the gate. It can hold, delay or pace what the server writes, and hold what it reads.

It is a protocol for the event loop and provides a transport to aiohttp's protocol. So no data is copied through a
second socket.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from nodenet.lab import packet_filter
from nodenet.lab.api_trouble import ApiTrouble, Mode

_HELD = (Mode.HANG, Mode.BLACKHOLE)
# Bytes in the queue above which the server must pause writing, and below which it may resume.
_HIGH, _LOW = 64 * 1024, 16 * 1024
# Pieces per second of a paced stream: a slow link delivers small amounts continuously.
_PIECES = 20
# struct linger {on, seconds}: with on=1 and 0 seconds, close(2) sends a RST.
_RESET = struct.pack("@ii", 1, 0)

Entered = Callable[["Connection", str], ApiTrouble | None]


class Connection(asyncio.Protocol):
    """`entered` is called with the client's address and returns its fault. `left` is called at the end.

    `node`: the node that the client belongs to; None if it belongs to no node.
    """

    def __init__(self, inner: asyncio.Protocol, entered: Entered, left: Callable[[Connection], None]) -> None:
        self.node: str | None = None
        self._inner = inner
        self._entered = entered
        self._left = left
        self._transport: asyncio.Transport
        self._outlet: Outlet | None = None
        self._held = self._eof = False
        self._reads = True
        self._inbox = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        trouble = self._entered(self, transport.get_extra_info("peername")[0])
        if trouble is not None and trouble.mode is Mode.AWAY:
            self.reset()
            return
        self._outlet = Outlet(transport, self._inner)
        self._inner.connection_made(_Transport(self, transport, self._outlet))
        if trouble is not None:
            self.apply(trouble)

    def apply(self, trouble: ApiTrouble | None) -> None:
        """Change the fault of this connection; None ends it."""
        mode = trouble.mode if trouble is not None else None
        if mode is Mode.AWAY:
            self.reset()
            return
        sock = self._transport.get_extra_info("socket")
        if mode is Mode.BLACKHOLE:
            packet_filter.attach(sock, packet_filter.drop_all())
        else:
            packet_filter.detach(sock)
        self._held = mode in _HELD
        if not self._held:
            self._catch_up()
        self._read_or_not()
        if self._outlet is not None:
            slow = trouble if mode is Mode.SLOW else None
            self._outlet.apply(slow, held=self._held)

    def _catch_up(self) -> None:
        """Pass the data to the server that arrived while the connection was held."""
        data, self._inbox = self._inbox, b""
        if data:
            self._inner.data_received(data)
        if self._eof and not self._inner.eof_received():
            self._transport.close()
        self._eof = False

    def reset(self) -> None:
        """Abort the connection. The client gets a RST."""
        sock = self._transport.get_extra_info("socket")
        packet_filter.detach(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def want_reads(self, wanted: bool) -> None:
        """Pause or resume reading, on request of the server."""
        self._reads = wanted
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._reads and not self._held:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if not self._held:
            self._inner.data_received(data)
            return
        # Before Python 3.12 the event loop ignores a pause_reading() called in connection_made, so data may arrive on a
        # held connection. Store it and pause again.
        self._inbox += data
        self._transport.resume_reading()
        self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        self._eof = self._held
        return True if self._held else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._outlet is not None:
            self._outlet.transport_full(True)

    def resume_writing(self) -> None:
        if self._outlet is not None:
            self._outlet.transport_full(False)

    def connection_lost(self, error: Exception | None) -> None:
        self._left(self)
        if self._outlet is not None:
            self._outlet.drop()
            self._inner.connection_lost(error)


class Outlet:
    """A queue of data from the server that must not be sent to the client yet. A close is queued like data."""

    def __init__(self, transport: asyncio.Transport, writer: asyncio.Protocol) -> None:
        self.closing = False
        self._transport = transport
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        # (time at which to send, bytes); None in place of bytes closes the connection.
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._slow: ApiTrouble | None = None
        self._held = False
        self._line_free = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport_full = self._writer_paused = False

    @property
    def waiting(self) -> int:
        """Bytes."""
        return self._size

    def apply(self, slow: ApiTrouble | None, *, held: bool) -> None:
        """Change latency and rate; `slow` None: send at once. Queued data is scheduled again."""
        waiting = [data for _, data in self._queue]
        self._slow, self._held, self._line_free = slow, held, 0.0
        self._queue.clear()
        for data in waiting:
            self._enqueue(data)
        self._pump()

    def write(self, data: bytes) -> None:
        if self.closing:
            return
        if not (self._queue or self._held or self._slow):
            self._transport.write(data)
            return
        self._size += len(data)
        self._enqueue(data)
        self._pump()

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        self._enqueue(None)
        self._pump()

    def drop(self) -> None:
        """Discard the queue after the end of the connection."""
        self._queue.clear()
        self._size, self.closing = 0, True
        if self._timer is not None:
            self._timer.cancel()

    def transport_full(self, full: bool) -> None:
        self._transport_full = full
        self._update_flow_control()

    def _enqueue(self, data: bytes | None) -> None:
        """Append data to the queue. None: close right after the last byte."""
        if data is None:
            self._queue.append((self._queue[-1][0] if self._queue else 0.0, None))
        else:
            self._queue.extend(self._schedule(data))

    def _schedule(self, data: bytes) -> Iterable[tuple[float, bytes]]:
        """Split data into pieces, each with the time at which its last byte has passed the slow link."""
        slow = self._slow
        if slow is None:
            return [(0.0, data)]
        at = max(self._loop.time() + slow.latency, self._line_free)
        if not slow.rate:
            self._line_free = at
            return [(at, data)]
        size = max(1, slow.rate // _PIECES)
        found = []
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            at += len(piece) / slow.rate
            found.append((at, piece))
        self._line_free = at
        return found

    def _pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and not self._held:
            at, data = self._queue[0]
            if at > self._loop.time():
                self._timer = self._loop.call_at(at, self._pump)
                break
            self._queue.popleft()
            if data is None:
                self._transport.close()
                break
            self._size -= len(data)
            self._transport.write(data)
        self._update_flow_control()

    def _update_flow_control(self) -> None:
        """Pause or resume the server's writing, so that the queue stays small."""
        limit = _LOW if self._writer_paused else _HIGH
        full = self._transport_full or self._size > limit
        if full != self._writer_paused:
            self._writer_paused = full
            (self._writer.pause_writing if full else self._writer.resume_writing)()


class _Transport(asyncio.Transport):
    """The transport that the server's protocol gets."""

    def __init__(self, connection: Connection, transport: asyncio.Transport, outlet: Outlet) -> None:
        super().__init__()
        self._connection = connection
        self._transport = transport
        self._outlet = outlet

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._outlet.closing or self._transport.is_closing()

    def close(self) -> None:
        self._outlet.close()

    def abort(self) -> None:
        self._outlet.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._outlet.write(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._outlet.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self._outlet.waiting + self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._connection.want_reads(False)

    def resume_reading(self) -> None:
        self._connection.want_reads(True)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def can_write_eof(self) -> bool:
        return False
