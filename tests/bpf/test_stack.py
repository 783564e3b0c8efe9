"""Every chain of calls fits into the verifier's 512 bytes of stack, as Linux 5.10 counts them.

5.10 rounds each frame up to 32 bytes, newer kernels to 16: what they take, 5.10 may refuse. Frames and calls are read
from the objects, so that no other kernel is needed to see it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodenet.bpf import build

STACK, ROUNDING = 512, 32
# struct bpf_insn: opcode, registers, offset, immediate (linux/bpf.h); opcodes of calls, of 64-bit moves and additions.
INSTRUCTION = struct.Struct("<BBhi")
CALL, MOVE, ADD, LOAD_64 = 0x85, 0xBF, 0x07, 0x18
PSEUDO_CALL, FRAME = 1, 10
STT_FUNC = 2
SHT_REL, SHT_SYMTAB = 9, 2


@dataclass(slots=True)
class Function:
    name: str
    stack: int = 0
    calls: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Section:
    kind: int
    info: int
    link: int
    data: bytes


def sections(elf: bytes) -> list[Section]:
    """ELF64, little-endian (elf.h)."""
    (offset,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    found = []
    for number in range(count):
        _, kind, _, _, start, length, link, info = struct.unpack_from("<IIQQQQII", elf, offset + number * size)
        found.append(Section(kind, info, link, elf[start : start + length]))
    return found


def functions(elf: bytes) -> dict[tuple[int, int], Function]:
    """By (section, offset in bytes), with their frames and whom they call."""
    parts = sections(elf)
    table = next(part for part in parts if part.kind == SHT_SYMTAB)
    names = parts[table.link].data
    symbols = list(struct.iter_unpack("<IBBHQQ", table.data))
    found: dict[tuple[int, int], Function] = {}
    sizes = {}
    for name, info, _, section, value, size in symbols:
        if info & 15 == STT_FUNC:
            found[section, value] = Function(names[name : names.index(b"\0", name)].decode())
            sizes[section, value] = size
    # (section, offset of the call) -> (section, value) of the symbol that it names
    moved: dict[tuple[int, int], tuple[int, int] | None] = {}
    for part in parts:
        if part.kind == SHT_REL:
            for offset, info in struct.iter_unpack("<QQ", part.data):
                symbol = symbols[info >> 32]
                # Section 0: one of the kernel's own functions.
                moved[part.info, offset] = (symbol[3], symbol[4]) if symbol[3] else None
    for (section, start), function in found.items():
        code = parts[section].data[start : start + sizes[section, start]]
        _read(function, code, section, start, moved)
    return found


def _read(
    function: Function, code: bytes, section: int, start: int, moved: dict[tuple[int, int], tuple[int, int] | None]
) -> None:
    frames: set[int] = set()  # registers that hold r10 itself
    for at, (opcode, registers, offset, immediate) in zip(
        range(start, start + len(code), 8), INSTRUCTION.iter_unpack(code), strict=True
    ):
        target, source = registers & 15, registers >> 4
        if opcode == CALL and source == PSEUDO_CALL:
            # A call of a static function counts from its section's start, or from itself within its own section.
            base = moved.get((section, at), (section, at))
            if base:
                function.calls.add((base[0], base[1] + (immediate + 1) * 8))
        elif opcode == MOVE:
            frames = frames | {target} if source == FRAME else frames - {target}
        elif opcode == ADD and target in frames:
            function.stack = max(function.stack, -immediate)
            frames.discard(target)
        elif (opcode & 7 == 1 and source == FRAME) or (opcode & 7 in (2, 3) and target == FRAME):
            function.stack = max(function.stack, -offset)


def deepest(found: dict[tuple[int, int], Function], where: tuple[int, int]) -> tuple[int, tuple[str, ...]]:
    """Bytes of the worst chain of calls from a function, and its names."""
    function = found[where]
    own = max(1, -(-function.stack // ROUNDING)) * ROUNDING
    size, names = max((deepest(found, callee) for callee in function.calls), default=(0, ()))
    return own + size, (f"{function.name} {own}", *names)


@pytest.mark.parametrize("program", build.PROGRAMS)
@pytest.mark.parametrize("cast_ctx", [False, True])
def test_every_chain_of_calls_fits(program: str, cast_ctx: bool, bpf_cache: Path) -> None:
    found = functions(build.build(program, bpf_cache, cast_ctx=cast_ctx).read_bytes())
    assert any(function.stack for function in found.values())
    for where in found:
        size, chain = deepest(found, where)
        assert size <= STACK, f"{size} bytes: {' -> '.join(chain)}"
