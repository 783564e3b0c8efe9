"""nodenet/abi against the BTF of the built objects: sizes, offsets and every enum."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet import abi, model
from nodenet.bpf import build, libbpf
from nodenet.bpf.loader import DatapathConfig

_STRUCT, _ENUM = 4, 6


class _BtfType(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


class Field(NamedTuple):
    offset: int
    size: int


class Btf:
    """What the compiler wrote down, read through libbpf."""

    def __init__(self, path: Path) -> None:
        self.lib = libbpf.lib()
        self.object = self.lib.bpf_object__open_file(str(path).encode(), None)
        assert self.object, libbpf.log().take()
        self.btf = self.lib.bpf_object__btf(self.object)

    def close(self) -> None:
        self.lib.bpf_object__close(self.object)

    def _find(self, name: str, kind: int) -> tuple[int, int, int] | None:
        number = self.lib.btf__find_by_name_kind(self.btf, name.encode(), kind)
        if number < 0:
            return None
        pointer = self.lib.btf__type_by_id(self.btf, number)
        header = _BtfType.from_address(pointer)
        return pointer + ctypes.sizeof(_BtfType), header.info & 0xFFFF, header.size

    def struct(self, name: str) -> tuple[int, dict[str, Field]] | None:
        found = self._find(name, _STRUCT)
        if found is None:
            return None
        at, count, size = found
        members = {}
        for index in range(count):
            name_off, type_id, bits = struct.unpack("=III", ctypes.string_at(at + 12 * index, 12))
            label = self.lib.btf__name_by_offset(self.btf, name_off).decode()
            members[label] = Field(bits // 8, self.lib.btf__resolve_size(self.btf, type_id))
        return size, members

    def enum(self, name: str) -> dict[str, int] | None:
        found = self._find(name, _ENUM)
        if found is None:
            return None
        at, count, _ = found
        values = {}
        for index in range(count):
            name_off, value = struct.unpack("=Ii", ctypes.string_at(at + 8 * index, 8))
            values[self.lib.btf__name_by_offset(self.btf, name_off).decode()] = value
        return values


# The compiler describes a type only where a global, a map or a function has it; the programs use these otherwise.
ENUMS = (
    "nn_drop",
    "nn_direction",
    "nn_identity",
    "nn_endpoint_flags",
    "nn_service_addr_flags",
    "nn_frontend_flags",
    "nn_frontend_scope",
    "nn_action",
    "nn_rule_direction",
    "nn_ct_flags",
    "nn_nat_flags",
    "nn_ct_status",
    "nn_event_type",
    "nn_observation_point",
    "nn_table",
    "nn_entry_end",
)


def build_types(folder: Path) -> Path:
    """An object of the same header that holds the types which the programs only use inside functions."""
    source = folder / "types.c"
    source.write_text(
        '#include "lib/abi.h"\n'
        + "".join(f"enum {name} {name}_used;\n" for name in ENUMS)
        + "struct nn_event nn_event_used;\nstruct nn_metrics_key nn_metrics_key_used;\n"
        + "struct nn_sock_question nn_sock_question_used;\n"
    )
    target = folder / "types.o"
    flags = [*build.FLAGS, *build._include_flags(), f"-I{build.source_dir()}"]
    subprocess.run(["clang", *flags, "-c", source, "-o", target], check=True)
    return target


@pytest.fixture(scope="module")
def btfs(bpf_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Btf]]:
    built = [*build.build_all(bpf_cache).values(), build_types(tmp_path_factory.mktemp("types"))]
    opened = [Btf(path) for path in built]
    yield opened
    for btf in opened:
        btf.close()


def first(values: Iterator[Any], what: str) -> Any:
    found = next((value for value in values if value is not None), None)
    assert found is not None, f"{what} is in no object's BTF"
    return found


ONES = ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
MAC = "ff:ff:ff:ff:ff:ff"
D = model.Direction.EGRESS
# One record per struct with every field told apart: a value, and the C field where its bytes must stand.
LAYOUT: dict[str, tuple[abi.Record, dict[str, str]]] = {
    "nn_endpoint_key": (abi.AddressKey(ONES), {"addr": "addr"}),
    "nn_endpoint_entry": (
        abi.EndpointVersions(1, 2, 3, 4, 5, 6, 7, MAC, 8),
        {n: n for n in abi.EndpointVersions._fields},
    ),
    "nn_lpm_key": (abi.LpmKey(9, ONES), {"prefixlen": "prefixlen", "addr": "addr"}),
    "nn_ipcache_entry": (abi.NumberVersions(1, 2, 3), {"now": "identity", "was": "was", "since": "since"}),
    "nn_cidr_entry": (abi.NumberVersions(1, 2, 3), {"now": "region", "was": "was", "since": "since"}),
    "nn_rule": (abi.Rule.deny(1, 2), {"verdict": "verdict", "rule_id": "rule_id"}),
    "nn_policy_entry": (
        abi.RuleVersions(abi.Rule.deny(1, 2), abi.Rule.allow(3, 4), 5),
        {n: n for n in ("now", "was", "since")},
    ),
    "nn_policy_key": (
        abi.PolicyKey(1, 2, 3, D, 4, 5),
        {n: n for n in ("prefixlen", "subject", "peer", "direction", "protocol", "port")},
    ),
    "nn_service_addr_key": (abi.AddressKey(ONES), {"addr": "addr"}),
    "nn_frontend_key": (
        abi.FrontendKey(ONES, 1, 2, 3, 4),
        {n: n for n in ("addr", "port", "protocol", "scope")} | {"slot": "backend_slot"},
    ),
    "nn_frontend_entry": (
        abi.FrontendEntry(1, 2, 3, 4, 5, 6),
        {"service_id": "rev_nat_index", "backends": "count"}
        | {n: n for n in ("backend_id", "flags", "affinity_id", "affinity_seconds")},
    ),
    "nn_affinity_key": (abi.AffinityKey(ONES, 1), {n: n for n in abi.AffinityKey._fields}),
    "nn_affinity_entry": (abi.AffinityEntry(1, 2), {n: n for n in abi.AffinityEntry._fields}),
    "nn_client_entry": (abi.ClientEntry(ONES, ONES), {n: n for n in abi.ClientEntry._fields}),
    "nn_backend_entry": (abi.AddressPort(ONES, 1, 2), {n: n for n in ("addr", "port", "protocol")}),
    "nn_source_range_key": (
        abi.SourceRangeKey(1, 2, ONES),
        {"prefixlen": "prefixlen", "service_id": "rev_nat_index", "addr": "addr"},
    ),
    "nn_member_key": (abi.MemberKey(1, 2), {"service_id": "rev_nat_index", "backend_id": "backend_id"}),
    "nn_revnat_entry": (abi.AddressPort(ONES, 1, 2), {n: n for n in ("addr", "port", "protocol")}),
    "nn_ct_key": (
        abi.CtKey(ONES, ONES, 1, 2, 3),
        {n: n for n in ("pod", "remote", "pod_port", "remote_port", "protocol")},
    ),
    "nn_ct_entry": (
        abi.CtEntry(1, 2, 3, 4, D, 5, 6, 7),
        {"service_id": "rev_nat_index"}
        | {n: n for n in ("last_seen", "revision", "rule_id", "direction", "flags", "endpoint_id", "created")},
    ),
    "nn_nat_key": (abi.NatKey(ONES, ONES, 1, 2, 3, 4), {n: n for n in abi.NatKey._fields}),
    "nn_nat_entry": (
        abi.NatEntry(ONES, ONES, 1, 2, 3, 4, 5, 6, 7, 8),
        {n: n for n in abi.NatEntry._fields if n != "service_id"} | {"service_id": "rev_nat_index"},
    ),
    "nn_sock_question": (
        abi.SockQuestion(ONES, ONES, 2, 3),
        {n: n for n in ("local", "remote", "local_port", "remote_port")},
    ),
    "nn_sock_revnat_key": (abi.SockRevnatKey(1, ONES, 2, 3), {n: n for n in ("cookie", "addr", "port", "protocol")}),
    "nn_metrics_key": (abi.MetricsKey(1, 2), {"reason": "reason", "direction": "direction"}),
    "nn_metrics_entry": (abi.MetricsEntry(1, 2), {"packets": "packets", "octets": "bytes"}),
    "nn_state": (abi.State(1, 2), {n: n for n in abi.State._fields}),
    "nn_event": (
        abi.Event(*range(1, 7), ONES, ONES, *range(9, 24), MAC, MAC, 4, 1),
        {n: n for n in abi.Event._fields if n != "service_id"} | {"service_id": "rev_nat_index"},
    ),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_every_field_stands_where_the_compiler_put_it(btfs: list[Btf], name: str) -> None:
    record, fields = LAYOUT[name]
    size, members = first((btf.struct(name) for btf in btfs), name)
    assert len(record.pack()) == size
    assert {m for m in members if not m.startswith("pad")} == set(fields.values())
    zero = {"": 0}
    for python_name, c_name in fields.items():
        # Clear one field: exactly the bytes of the C member change.
        value = getattr(record, python_name)
        blank: object = type(value)(0) if isinstance(value, int) and python_name != "direction" else zero[""]
        if isinstance(value, abi.Rule):
            blank = abi.Rule(0, 0)
        if python_name in ("addr", "client", "v4", "v6", "pod", "local", "remote", "saddr", "daddr", "backend"):
            blank = ip_address("::")
        elif "mac" in python_name:
            blank = "00:00:00:00:00:00"
        cleared = record._replace(**{python_name: blank})  # type: ignore[attr-defined]
        changed = [at for at, (a, b) in enumerate(zip(record.pack(), cleared.pack(), strict=True)) if a != b]
        member = members[c_name]
        assert changed, f"{name}.{python_name} is not packed"
        assert all(member.offset <= at < member.offset + member.size for at in changed), f"{name}.{python_name}"


@pytest.mark.parametrize("name", LAYOUT)
def test_records_survive_the_round_trip(name: str) -> None:
    record, _ = LAYOUT[name]
    assert type(record).unpack(record.pack()) == record


@pytest.mark.parametrize(
    ("c_name", "python", "sign"),
    [
        ("nn_drop", {f"{n}": v for n, v in abi.DropReason.__members__.items()}, -1),
        ("nn_direction", model.Direction.__members__, 1),
        ("nn_endpoint_flags", abi.EndpointFlag.__members__, 1),
        ("nn_service_addr_flags", abi.AddressFlag.__members__, 1),
        ("nn_frontend_flags", abi.FrontendFlag.__members__, 1),
        ("nn_frontend_scope", abi.FrontendScope.__members__, 1),
        ("nn_action", abi.Action.__members__, 1),
        ("nn_rule_direction", abi.RuleDirection.__members__, 1),
        ("nn_ct_flags", abi.CtFlag.__members__, 1),
        ("nn_nat_flags", abi.NatFlag.__members__, 1),
        ("nn_ct_status", abi.CtStatus.__members__, 1),
        ("nn_table", abi.FairTable.__members__, 1),
        ("nn_entry_end", abi.EntryEnd.__members__, 1),
        ("nn_event_type", abi.EventType.__members__, 1),
        ("nn_observation_point", abi.ObservationPoint.__members__, 1),
    ],
)
def test_enums_have_the_same_numbers(btfs: list[Btf], c_name: str, python: dict[str, int], sign: int) -> None:
    values = first((btf.enum(c_name) for btf in btfs), c_name)
    assert sorted(sign * value for value in values.values()) == sorted(int(v) for v in python.values())


def test_reserved_identities(btfs: list[Btf]) -> None:
    values = first((btf.enum("nn_identity") for btf in btfs), "nn_identity")
    assert values["NN_IDENTITY_HOST"] == model.Identity.HOST
    assert values["NN_IDENTITY_WORLD"] == model.Identity.WORLD
    assert values["NN_IDENTITY_UNMANAGED"] == model.Identity.UNMANAGED
    assert values["NN_IDENTITY_REMOTE_NODE"] == model.Identity.REMOTE_NODE


def test_configuration_has_the_size_of_its_struct(btfs: list[Btf]) -> None:
    size, members = first((btf.struct("nn_config") for btf in btfs), "nn_config")
    assert len(DatapathConfig().pack()) == size
    names = [name for name in members if not name.startswith("pad")]
    # The numbers of buckets follow from the sizes.
    assert [name for name in names if not name.endswith("_buckets")] == [
        field for field in DatapathConfig.__dataclass_fields__ if field != "sizes"
    ]
    cookie = DatapathConfig(netns_cookie=0x0102030405060708).pack()
    at = members["netns_cookie"]
    assert cookie[at.offset : at.offset + at.size] == bytes(range(8, 0, -1))


@given(st.ip_addresses())
def test_addresses_survive_the_round_trip(address: model.IPAddress) -> None:
    packed = abi.pack_addr(address)
    assert len(packed) == 16
    unpacked = abi.unpack_addr(packed)
    # ::ffff:0:0/96 means IPv4 in a map, whichever way it came in.
    mapped = getattr(address, "ipv4_mapped", None)
    assert unpacked == (mapped or address)
