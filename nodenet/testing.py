"""Fakes for tests: maps in memory, maps that fail or crash at a given write, a clock that the test advances."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodenet import tables
from nodenet.abi import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    POLICY_BITS_DIRECTION,
    POLICY_BITS_PROTOCOL,
    U32,
    V4_PREFIX_BITS,
    AddressFlag,
    AddressPort,
    EndpointFlag,
    FrontendFlag,
    LpmKey,
    PolicyKey,
)
from nodenet.compile.state import Names
from nodenet.errors import NodenetError
from nodenet.model import Direction, Identity, Protocol
from nodenet.reconcile.apply import Table
from nodenet.reconcile.switch import SWITCHED


class FakeTable:
    """A map in memory. It stores packed bytes, as the kernel does, so that errors in packing are found."""

    def __init__(self, name: str, entries: Mapping[Any, Any] | None = None, max_entries: int = 1 << 30) -> None:
        self.name = name
        self.max_entries = max_entries
        self._spec = tables.KEYED[name]
        self._entries: dict[bytes, bytes] = {}
        for key, value in (entries or {}).items():
            self.update(key, value)

    def items(self) -> Iterable[tuple[Any, Any]]:
        return [(self._spec.key.unpack(k), self._spec.value.unpack(v)) for k, v in self._entries.items()]

    def update(self, key: Any, value: Any) -> None:
        packed = key.pack()
        if packed not in self._entries and len(self._entries) >= self.max_entries:
            raise OSError(errno.E2BIG, "map is full")
        self._entries[packed] = value.pack()

    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        for made, (key, value) in enumerate(entries):
            try:
                self.update(key, value)
            except (OSError, NodenetError):
                return made
        return len(entries)

    def delete(self, key: Any) -> None:
        self._entries.pop(key.pack(), None)


class Crashed(BaseException):
    """Simulates the death of the process. It is a BaseException, so that no error handler catches it."""


@dataclass(slots=True)
class Fault:
    """A fault at the `at`-th write (from 0) to any table of one agent. The tables share it.

    `crash`: raises Crashed before the write or, with `made`, after it. Otherwise this write and the next `times` - 1
    fail with ENOMEM.
    """

    at: int
    crash: bool = False
    made: bool = False
    times: int = 1
    writes: int = field(default=0, init=False)

    def hit(self) -> bool:
        self.writes += 1
        return self.at < self.writes <= self.at + self.times


class FaultyTable:
    """A Table that fails as its Fault says."""

    def __init__(self, inner: Table, fault: Fault) -> None:
        self._inner = inner
        self._fault = fault

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self._inner.items()

    def update(self, key: Any, value: Any) -> None:
        hit = self._fault.hit()
        if not hit or self._fault.made:
            self._inner.update(key, value)
        if hit:
            self._fail()

    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        """None of them, as in a kernel without batches: faults are counted by single writes."""
        return 0

    def delete(self, key: Any) -> None:
        hit = self._fault.hit()
        if not hit or self._fault.made:
            self._inner.delete(key)
        if hit:
            self._fail()

    def _fail(self) -> None:
        if self._fault.crash:
            raise Crashed
        raise OSError(errno.ENOMEM, "out of memory (on purpose)")


def fake_tables(entries: Mapping[str, Mapping[Any, Any]] | None = None) -> dict[str, FakeTable]:
    """One FakeTable for every map with declared key and value records."""
    return {name: FakeTable(name, (entries or {}).get(name)) for name in tables.KEYED}


def in_force(tables: Mapping[str, Table]) -> dict[str, dict[Any, Any]]:
    """What is in force of these tables, as a program finds it that starts now: values with two versions are shown as
    one."""
    found = {name: dict(table.items()) for name, table in tables.items()}
    generation = found["nn_state"][U32(0)].generation if found.get("nn_state") else 0
    for name in SWITCHED:
        if name in found:
            values = {key: value.at(generation) for key, value in found[name].items()}
            found[name] = {key: value for key, value in values.items() if value is not None}
    return found


class FakeClock:
    """A clock that moves only in `advance`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        # Seconds of `now` without CPU time for this thread: it waited for a CPU.
        self.stolen = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now - self.stolen

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109
        if event.is_set() or (timeout is not None and timeout <= 0):
            return event.is_set()
        over = asyncio.Event()
        if timeout is not None:
            self._sleepers.append((self.now + timeout, over))
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return event.is_set()

    def alarm(self, event: asyncio.Event) -> Callable[[float], None]:
        return lambda seconds: self._sleepers.append((self.now + seconds, event))

    def advance(self, seconds: float) -> None:
        """Move the clock. Tasks whose timeout has passed run in the next iteration of the event loop."""
        self.now += seconds
        for due, over in self._sleepers:
            if due <= self.now:
                over.set()
        self._sleepers = [(due, over) for due, over in self._sleepers if due > self.now]


def dump(held: Mapping[str, Mapping[Any, Any]], names: Names | None = None) -> str:
    """All entries of all tables as sorted text, one per line. Numbers that `names` contains are replaced by their
    meaning, so that the text does not depend on them."""
    writer = _Dump(held, names or Names())
    sections = [[name, *(f"  {line}" for line in writer.lines(name))] for name in sorted(held) if held[name]]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


class _Dump:
    def __init__(self, held: Mapping[str, Mapping[Any, Any]], names: Names) -> None:
        self._tables = held
        self._names = names

    def lines(self, name: str) -> Iterator[str]:
        render = getattr(self, f"_{name.removeprefix('nn_')}", self._plain)
        entries = [(_key_order(key), render(key, value)) for key, value in self._tables[name].items()]
        if name in ("nn_backend", "nn_member", "nn_revnat", "nn_source_range", "nn_policy"):
            # Their keys are numbers: sort by text instead, so that the order does not depend on them.
            return iter(sorted(text for _, text in entries))
        return (text for _, text in sorted(entries))

    def _plain(self, key: Any, value: Any) -> str:
        return f"{key} {value}"

    def _frontend(self, key: Any, value: Any) -> str:
        where = f"{key.addr} {_port(key.port, key.protocol)}{' external' if key.scope else ''}"
        if key.slot:
            backend = next(
                (v for k, v in self._tables.get("nn_backend", {}).items() if k.value == value.backend_id), None
            )
            return f"{where} slot {key.slot}: {_address_port(backend) if backend else 'MISSING'}"
        flags = ", ".join(flag.name.lower() for flag in FrontendFlag(value.flags) if flag.name)
        return f"{where}: {value.backends} backends, {self._service(value.service_id)}{flags and f', {flags}'}"

    def _service_addr(self, key: Any, value: Any) -> str:
        refused = value.value & AddressFlag.REFUSE_UNSERVED
        return f"{key.addr} unserved ports: {'refused' if refused else 'pass'}"

    def _backend(self, key: Any, value: Any) -> str:
        return _address_port(value)

    def _member(self, key: Any, value: Any) -> str:
        owner = self._service(key.service_id & ~MEMBER_AFFINITY)
        affinity = ", affinity" if key.service_id & MEMBER_AFFINITY else ""
        external = " external" if key.backend_id & MEMBER_EXTERNAL else ""
        return f"{owner}{affinity}{external}: {_address_port(value)}"

    def _source_range(self, key: Any, value: Any) -> str:
        bits = key.prefixlen - 32 - (V4_PREFIX_BITS if key.addr.version == 4 else 0)
        return f"{self._service(key.service_id)}: {key.addr}/{bits}"

    def _revnat(self, key: Any, value: Any) -> str:
        return f"{_address_port(value)}: {self._service(key.value)}"

    def _ipcache(self, key: Any, value: Any) -> str:
        return f"{_prefix(key)}: {self._identity(value.value)}"

    def _cidr(self, key: Any, value: Any) -> str:
        return f"{_prefix(key)}: {self._identity(value.value)}"

    def _endpoint(self, key: Any, value: Any) -> str:
        flags = ", ".join(flag.name.lower() for flag in EndpointFlag(value.flags) if flag.name) or "not isolated"
        return (
            f"{key.addr}: endpoint {value.endpoint_id}, ifindex {value.ifindex}, {value.mac}, "
            f"{self._identity(value.identity)}, {flags}"
        )

    def _policy(self, key: Any, value: Any) -> str:
        arrow = "from" if key.direction == Direction.INGRESS else "to"
        peer = self._identity(key.peer) if key.peer else "everyone"
        rule = self._names.rules.get(value.rule_id, f"rule {value.rule_id}")
        return f"{self._identity(key.subject)} {arrow} {peer} {_ports(key)}: {rule}"

    def _service(self, number: int) -> str:
        found = self._names.services.get(number)
        if found is None:
            pod = self._names.host_ports.get(number)
            return f"hostPort {pod.port} of {pod.ref}" if pod else f"service {number}"
        return f"{found.ref}{':' + found.name if found.name else ''}"

    def _identity(self, number: int) -> str:
        labels = self._names.identities.get(number)
        if labels is not None:
            return f"{labels.namespace}{{{','.join(f'{k}={v}' for k, v in labels.labels)}}}"
        if number in self._names.regions:
            return f"region {self._names.regions[number]}"
        reserved = {identity.value: identity.name for identity in Identity}
        return reserved.get(number, f"identity {number}")


def _key_order(key: Any) -> tuple[Any, ...]:
    return tuple((field.version, int(field)) if hasattr(field, "version") else (0, field) for field in key)


def _address_port(value: AddressPort) -> str:
    return f"{value.addr} {_port(value.port, value.protocol)}"


def _port(port: int, protocol: int) -> str:
    return f"{port}/{Protocol(protocol).name}"


def _prefix(key: LpmKey) -> str:
    return f"{key.addr}/{key.prefixlen - (V4_PREFIX_BITS if key.addr.version == 4 else 0)}"


def _ports(key: PolicyKey) -> str:
    if key.prefixlen == POLICY_BITS_DIRECTION:
        return "all protocols"
    if key.prefixlen == POLICY_BITS_PROTOCOL:
        return f"all {Protocol(key.protocol).name}"
    span = 1 << (96 - key.prefixlen)
    last = f"-{key.port + span - 1}" if span > 1 else ""
    return f"{key.port}{last}/{Protocol(key.protocol).name}"
