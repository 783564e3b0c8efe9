"""Counts all packets that the kernel drops, by reason and function: tracepoint skb:kfree_skb, counted in the kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from nodenet.errors import CannotRunError
from nodenet.link import mounts
from nodenet.trace.debian import load_bcc

TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
EVENT = Path("events/skb/kfree_skb/format")
PROTOCOLS = {0x0800: "IPv4", 0x86DD: "IPv6", 0x0806: "ARP"}
_FIELD = re.compile(r"field:.*?(\w+);\s*offset:(\d+);\s*size:(\d+);")
_SYMBOL = re.compile(r'\{ (0x[0-9a-f]+|\d+), "(\w+)" \}')


@dataclass(frozen=True, slots=True)
class Format:
    """The offsets of the fields of a record, and the names of the reasons (empty before Linux 5.17, which reports
    none)."""

    offsets: Mapping[str, int]
    reasons: Mapping[int, str]


class Drop(NamedTuple):
    """Dropped packets since the previous `take`. `protocol` is the EtherType's name or number."""

    packets: int
    reason: str
    function: str
    protocol: str


def parse_format(text: str) -> Format:
    """Parse the tracepoint's `format` file. Raises CannotRunError if a required field is missing."""
    offsets = {name: int(offset) for name, offset, _size in _FIELD.findall(text)}
    for name in ("location", "protocol"):
        if name not in offsets:
            raise CannotRunError(f"tracepoint skb:kfree_skb of this kernel has no field {name!r}")
    return Format(offsets, {int(number, 0): name for number, name in _SYMBOL.findall(text)})


class DropTracer:
    """Used as a context manager; `take` returns the drops since its previous call. Needs root, BCC and tracefs.

    `source` is the folder with drops.bcc.c and the replacement for kernel headers. Raises CannotRunError if something
    is missing.
    """

    def __init__(self, source: Path) -> None:
        self._bcc = load_bcc()
        self._format = parse_format(_read_format())
        self._bpf = self._attach(source)
        self._seen: dict[tuple[int, int, int], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bpf.cleanup()

    def take(self) -> list[Drop]:
        """The drops since the previous call, the most frequent first."""
        return sorted(self._new(), key=lambda drop: (-drop.packets, drop))

    def _new(self) -> Iterator[Drop]:
        for key, value in self._bpf["nn_drops"].items():
            place = (key.location, key.reason, key.protocol)
            more = value.value - self._seen.get(place, 0)
            self._seen[place] = value.value
            if more:
                function = self._bpf.ksym(key.location).decode(errors="replace")
                reason = self._format.reasons.get(key.reason, str(key.reason) if key.reason else "-")
                yield Drop(more, reason, function, protocol_name(key.protocol))

    def _attach(self, source: Path) -> Any:
        if not Path(f"/lib/modules/{os.uname().release}/build").exists():
            os.environ.setdefault("BCC_KERNEL_SOURCE", str(source / "kernel"))
        flags = [f"-DNN_{name.upper()}_OFFSET={offset}" for name, offset in self._format.offsets.items()]
        try:
            bpf = self._bcc.BPF(src_file=str(source / "drops.bcc.c"), cflags=flags)
            bpf.attach_tracepoint(tp="skb:kfree_skb", fn_name="nn_on_drop")
        except Exception as error:  # BCC raises plain exceptions
            raise CannotRunError(f"BCC cannot trace skb:kfree_skb: {error}", "run as root") from error
        return bpf


def protocol_name(number: int) -> str:
    """The name of a common EtherType, else its number. The tracepoint reports it in host byte order."""
    return PROTOCOLS.get(number, f"0x{number:04x}")


def _read_format() -> str:
    for folder in TRACEFS:
        if (folder / EVENT).exists():
            return (folder / EVENT).read_text()
    _mount_tracefs(TRACEFS[0])
    return (TRACEFS[0] / EVENT).read_text()


def _mount_tracefs(folder: Path) -> None:
    """Mount tracefs in a mount namespace of this process, so that the machine's own mounts do not change."""
    try:
        mounts.own()
        mounts.mount("tracefs", folder, "tracefs")
    except OSError as error:
        raise CannotRunError(
            f"no tracefs is mounted, and it cannot be mounted on {folder}: {error.strerror}", "run as root"
        ) from error
