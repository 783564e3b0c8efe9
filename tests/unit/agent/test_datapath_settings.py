"""Which settings of the programs follow from the agent's configuration."""

from __future__ import annotations

import pytest

from nodenet import tables
from nodenet.agent.datapath import Datapath
from nodenet.bpf.probe import Feature
from nodenet.config import Config


@pytest.mark.parametrize(("redirect_peer", "services"), [(True, True), (True, False), (False, True)])
def test_beside_kube_proxy_packets_pass_the_nodes_stack(redirect_peer: bool, services: bool) -> None:
    """An answer that skipped the bridge would reach the client from the backend's address."""
    datapath = object.__new__(Datapath)
    datapath.config = Config("n1", redirect_peer=redirect_peer, services=services)
    datapath.entries = dict.fromkeys(tables.SIZE_KEYS, 100)
    datapath.features = [Feature("helper redirect_peer", available=True, needed=False, purpose="")]
    assert datapath._settings().redirect_peer == (redirect_peer and services)
