"""The slots of nn_ct, as user space computes them. tests/bpf/test_fair.py compares them with the programs'."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from nodenet import abi
from nodenet.abi import slots
from nodenet.model import Direction

ADDRESSES = st.ip_addresses()
PORTS = st.integers(0, 65535)
KEYS = st.builds(abi.CtKey, ADDRESSES, ADDRESSES, PORTS, PORTS, st.integers(0, 255))
VALUES = st.builds(
    abi.CtEntry,
    *(st.integers(0, 1000) for _ in range(4)),
    st.sampled_from([Direction.INGRESS, Direction.EGRESS]),
    st.integers(0, 255),
    PORTS,
    st.integers(0, 1000),
)


@given(st.dictionaries(KEYS, VALUES, max_size=slots.WAYS), st.integers(1, 6553))
def test_a_bucket_holds_its_entries(entries: dict[abi.CtKey, abi.CtEntry], buckets: int) -> None:
    packed = [(key.pack(), value.pack()) for key, value in entries.items()]
    bucket = slots.bucket_of(packed, buckets, slots.ct_owner)
    assert len(bucket) == 776
    assert list(slots.keys_in(bucket)) == [(key, slots.place_of(key, buckets)[1]) for key, _ in packed]
    assert all(slots.place_of(key, buckets)[0] < buckets for key, _ in packed)


@given(KEYS, VALUES)
def test_who_opened_a_flow_owns_it(key: abi.CtKey, value: abi.CtEntry) -> None:
    owner = slots.ct_owner(key.pack(), value.pack())
    other = key._replace(pod_port=1, remote_port=2, protocol=3)
    assert owner == slots.ct_owner(other.pack(), value.pack())
    assert owner < 1 << 31
    if value.direction is Direction.EGRESS:
        assert owner == 0x40000000 | value.endpoint_id
    else:
        assert owner < 0x40000000
        assert owner == slots.ct_owner(key.pack(), value._replace(endpoint_id=7).pack())


def test_ports_of_one_pair_spread_over_the_buckets() -> None:
    pod, remote = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")
    found = {slots.place_of(abi.CtKey(pod, remote, port, 53, 17).pack(), 64)[0] for port in range(1024, 2048)}
    assert found == set(range(64))
