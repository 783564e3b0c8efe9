"""The entries of maps in words, for `nodenet map dump` and `map get`: addresses, names of pods, Services and rules
beside the numbers, flags by name, times as ages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum, IntFlag
from typing import Any

from nodenet import abi
from nodenet.agent.rows import address_text, label_text
from nodenet.engine import Compiled
from nodenet.model import Direction, Protocol

# The flags of a record's member `flags`, by the record.
_FLAGS: Mapping[type[Any], type[IntFlag]] = {
    abi.EndpointVersions: abi.EndpointFlag,
    abi.FrontendEntry: abi.FrontendFlag,
    abi.CtEntry: abi.CtFlag,
    abi.NatEntry: abi.NatFlag,
}
_IDENTITIES = ("identity", "was_identity", "subject", "peer")
# What a map's U32, and the two versions of a number, mean. Key, value.
_NUMBERS: Mapping[str, tuple[str, str]] = {
    "nn_ipcache": ("", "identity"),
    "nn_cidr": ("", "identity"),
    "nn_state": ("entry", ""),
    "nn_service_addr": ("", "address_flags"),
    "nn_backend": ("backend_id", ""),
    "nn_revnat": ("service_id", ""),
    "nn_sock_revnat": ("", "service_id"),
    "nn_sock_choice": ("", "backend_id"),
}


class Words:
    """`now`: seconds of the monotonic clock. All names are those of one compilation."""

    def __init__(self, compiled: Compiled, now: float) -> None:
        self._names = compiled.names
        self._services = compiled.flow_names.services
        self._backends = compiled.desired.tables.get("nn_backend", {})
        self._pods = {one.endpoint_id: str(one.pod) for one in compiled.snapshot.endpoints.values()}
        self._now = now
        named = dict.fromkeys(_IDENTITIES, self._identity)
        self._of: Mapping[str, Callable[[Any], Any]] = {
            **named,
            "protocol": lambda number: name_of(Protocol, number),
            "direction": lambda number: _direction(number),
            "scope": lambda number: name_of(abi.FrontendScope, number).lower(),
            "address_flags": lambda number: flags_of(abi.AddressFlag, number),
            "rule_id": self._rule,
            "service_id": self._service,
            "backend_id": self._backend,
            "endpoint_id": lambda number: _with(number, self._pods.get(number, "")),
            "last_seen": self._age,
            "created": self._age,
            "last_used": self._age,
        }

    def rows(self, table: str, entries: Iterable[tuple[Any, Any]]) -> Iterable[dict[str, Any]]:
        """One row per entry: `key` and `value` with their members."""
        of_key, of_value = _NUMBERS.get(table, ("", ""))
        for key, value in entries:
            yield {"key": self._record(key, of_key), "value": self._value(value, of_value)}

    def _value(self, value: Any, meaning: str) -> dict[str, Any]:
        if isinstance(value, list):
            # Of a per-CPU map: the sum of each member.
            return {name: sum(getattr(one, name) for one in value) for name in value[0]._fields}
        return self._record(value, meaning)

    def _record(self, record: Any, meaning: str) -> dict[str, Any]:
        if isinstance(record, abi.MetricsKey):
            return _counter(record)
        if isinstance(record, abi.U32):
            return {meaning or "number": self._member(record, meaning, record.value)}
        if isinstance(record, abi.NumberVersions):
            now, was = (self._member(record, meaning, number) for number in (record.now, record.was))
            return {"now": now, "was": was, "since": record.since}
        return {name: self._member(record, name, value) for name, value in record._asdict().items()}

    def _member(self, record: Any, name: str, value: Any) -> Any:
        if isinstance(value, abi.Rule):
            return self._verdict(value)
        if name in ("flags", "was_flags") and type(record) in _FLAGS:
            return flags_of(_FLAGS[type(record)], value)
        if isinstance(record, abi.LpmKey) and name == "prefixlen":
            return value - (abi.V4_PREFIX_BITS if record.addr.version == 4 else 0)
        if name == "service_id" and isinstance(record, abi.MemberKey) and value & abi.MEMBER_AFFINITY:
            return f"{self._service(value & ~abi.MEMBER_AFFINITY)}, with session affinity"
        if name == "direction" and isinstance(record, abi.PolicyKey):
            # It names the tier too.
            return name_of(abi.RuleDirection, value).lower()
        words = self._of.get(name)
        if words is not None:
            return words(value)
        return value if isinstance(value, int | str) else str(value)

    def _verdict(self, rule: abi.Rule) -> str:
        if not rule.verdict:
            return "none"
        action = name_of(abi.Action, int(rule.action)).lower()
        return f"{action}, precedence {rule.precedence}, rule {self._rule(rule.rule_id)}"

    def _identity(self, number: int) -> str:
        return _with(number, label_text(self._names, number))

    def _rule(self, number: int) -> str:
        found = self._names.rules.get(number)
        return _with(number, str(found) if found else "")

    def _service(self, number: int) -> str:
        found = self._names.services.get(number)
        pod = self._names.host_ports.get(number)
        return _with(number, str(found.ref) if found else f"hostPort of {pod.ref}" if pod else "")

    def _backend(self, number: int) -> str:
        found = self._backends.get(abi.U32(number))
        return _with(number, address_text(found.addr, found.port) if found else "")

    def _age(self, seconds: int) -> str:
        return f"{max(0, int(self._now) - seconds)} s ago"


def name_of(enum: type[IntEnum], number: int) -> str:
    """The name of a number; the number itself if it has none."""
    try:
        return enum(number).name
    except ValueError:
        return str(number)


def flags_of(enum: type[IntFlag], number: int) -> str:
    """The names of the bits, for example isolated_ingress+tiered_egress; unknown bits as a number."""
    known = [flag for flag in enum if flag & number]
    rest = number & ~sum(known)
    return "+".join([*(str(flag.name).lower() for flag in known), *([hex(rest)] if rest else [])]) or "none"


def _direction(number: int) -> str:
    return name_of(Direction, number).lower()


def _with(number: int, name: str) -> str:
    return f"{number} ({name})" if name else str(number)


def _counter(key: abi.MetricsKey) -> dict[str, Any]:
    """The key of nn_metrics: a reason and a direction, or a table and how its entries ended."""
    if not key.direction:
        table, end = divmod(key.reason, abi.ENTRY_ENDS)
        name = f"nn_{name_of(abi.FairTable, table).lower()}"
        return {"entries_of": name, "ended": name_of(abi.EntryEnd, end).lower()}
    words = {0: "forwarded", abi.LOST_EVENTS: "lost event"}
    reason = words.get(key.reason) or name_of(abi.DropReason, key.reason)
    return {"reason": reason, "direction": _direction(key.direction)}
