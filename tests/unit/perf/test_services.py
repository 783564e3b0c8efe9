"""The one model that every mode renders."""

from __future__ import annotations

import pytest

from nodenet.kubeproxy.model import Backend
from perf.modes import real_backends
from perf.services import TARGET_PORT, build


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_size_and_places(count: int) -> None:
    model = build(count, 2, real_backends(2))
    assert model.size == len(model.services) == count
    assert model.at("middle").backends == real_backends(2)
    assert {name for name, _ in model.places} == ({"first", "middle", "last"} if count > 2 else {"middle"})


def test_addresses_are_unique() -> None:
    model = build(5000, 3, real_backends(3))
    measured = {index for _, index in model.places}
    filler = [b for i, s in enumerate(model.services) if i not in measured for b in s.backends]
    assert len(set(filler)) == len(filler)
    assert len({service.cluster_ip for service in model.services}) == 5000


def test_udp_stands_beside_tcp() -> None:
    model = build(10, 1, real_backends(1), udp=True)
    assert model.size == 10
    assert len(model.services) == 13
    tcp, udp = model.at("middle"), model.at("middle", "udp")
    assert (tcp.protocol, udp.protocol) == ("tcp", "udp")
    assert tcp.cluster_ip == udp.cluster_ip


def test_with_backends_changes_one_service() -> None:
    model = build(10, 1, real_backends(1))
    changed = model.with_backends("middle", (Backend("10.244.1.250", TARGET_PORT),))
    different = [a.name for a, b in zip(model.services, changed.services, strict=True) if a != b]
    assert different == [model.at("middle").name]


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="0 Services"):
        build(0, 1, real_backends(1))
    with pytest.raises(ValueError, match="3 backends"):
        build(1, 3, real_backends(2))
