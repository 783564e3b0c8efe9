"""Who opened a connection, on a kernel whose structs cannot be read: a listener on the pod's port tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodenet.bpf import loader
from nodenet.model import Direction

from .conftest import TC_OK, Datapath
from .test_pickup import (
    CELLS,
    World,
    namespaces,
    test_a_dual_stack_listener_and_one_of_several_that_share_a_port,
    test_a_handshake_whose_entry_is_gone_goes_on,
    test_a_listener_without_the_connection_vouches_for_nothing,
    test_an_allowed_idle_connection_lives_whoever_speaks_first,
    test_the_pods_sockets_decide_where_the_readings_differ,
    world,
)

pytestmark = pytest.mark.kernel

# These hold by either way.
__all__ = [
    "namespaces",
    "test_a_dual_stack_listener_and_one_of_several_that_share_a_port",
    "test_a_handshake_whose_entry_is_gone_goes_on",
    "test_a_listener_without_the_connection_vouches_for_nothing",
    "test_an_allowed_idle_connection_lives_whoever_speaks_first",
    "test_the_pods_sockets_decide_where_the_readings_differ",
    "world",
]


@pytest.fixture(scope="module")
def loaded_datapath(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    datapath = Datapath(bpffs / "nodenet", bpf_cache, loader.DatapathConfig(kernel_structs=False))
    try:
        yield datapath
    finally:
        datapath.close()


@pytest.mark.parametrize(("way", "egress", "ingress"), CELLS)
def test_a_server_that_listens_no_more_is_taken_for_the_opener(
    world: World, way: Direction, egress: bool, ingress: bool
) -> None:
    world.policy(egress=egress, ingress=ingress)
    with world.connection("remote", listens_on=False):
        assert (world.verdict(world.packet("remote", way), way) == TC_OK) == egress
