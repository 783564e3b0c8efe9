"""The number of the state increases when the version before could not read what this one keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nodenet import tables
from nodenet.cluster import release
from nodenet.cluster.release import Release
from nodenet.errors import CannotRunError
from nodenet.tables import Carried, Layout, state
from nodenet.tables.conversion import converter

ROOT = Path(__file__).resolve().parents[2]
# What the first version with this number keeps for established connections. With another number, copy the layouts of
# nodenet/tables that keep connections here.
NUMBER = 2
BASE = {
    "nn_state": Layout("number:4", "generation:4 recheck_from:4"),
    "nn_ct": Layout(
        "pod:16 remote:16 pod_port:2 remote_port:2 protocol:1 pad:3",
        "last_seen:4 revision:4 rule_id:4 rev_nat_index:4 direction:1 flags:1 endpoint_id:2 created:4",
    ),
    "nn_nat": Layout(
        "saddr:16 daddr:16 sport:2 dport:2 protocol:1 reply:1 pad:2",
        "saddr:16 daddr:16 sport:2 dport:2 last_seen:4 rev_nat_index:4 backend_id:4 slot:2 endpoint_id:2 flags:1 pad:3",
    ),
}
# Carried, but no connection needs them: addresses that a pod announces again, the choice of a client's next backend,
# and sockets of versions before decision 0042.
NO_CONNECTIONS = {"nn_port", "nn_claim", "nn_affinity", "nn_affinity_out", "nn_sock_revnat", "nn_sock_choice"}


def test_the_first_version_of_this_number_can_read_what_this_one_keeps() -> None:
    assert state.STATE == NUMBER, "update NUMBER and BASE"
    carried = {name: one.carried for name, one in tables.MAPS.items() if one.carried}
    assert set(carried) - NO_CONNECTIONS == set(BASE), "increase STATE, or add the map to NO_CONNECTIONS"
    for name, layout in BASE.items():
        readable = converter(Carried(layout), carried[name].layout)
        assert readable is not None, f"{name}: increase STATE: the version before would start with an empty map"


def test_a_larger_number_is_refused() -> None:
    for number in (0, 1, state.STATE):
        state.require_readable(number, "here")
    with pytest.raises(
        CannotRunError, match=f"here: .*state {state.STATE + 1}, expected at most {state.STATE}"
    ) as found:
        state.require_readable(state.STATE + 1, "here")
    assert "--set config.allow_downgrade=true" in found.value.hint


def test_the_manifests_have_the_number() -> None:
    for overlay in ("replace-kube-proxy", "beside-kube-proxy", "kind"):
        [daemon_set] = [obj for obj in release.objects(Release(overlay)) if obj["kind"] == "DaemonSet"]
        assert daemon_set["metadata"]["annotations"][release.STATE] == str(state.STATE)
    base = yaml.safe_load((ROOT / "daemonset/base/daemonset.yaml").read_text())
    assert base["metadata"]["annotations"] == {release.STATE: str(state.STATE)}
