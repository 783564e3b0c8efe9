"""Policies of other APIs are counted, never passed over as kinds that say nothing about policy."""

from __future__ import annotations

from typing import Any

import pytest

from netpolicy.foreign import is_policy, warning
from netpolicy.objects import cluster
from netpolicy.types import PolicyError


def obj(api_version: str, kind: str) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": {"selector": "all()"}}


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [
        ("cilium.io/v2", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
        ("crd.projectcalico.org/v1", "NetworkPolicy"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
    ],
)
def test_kinds(api_version: str, kind: str) -> None:
    assert is_policy(obj(api_version, kind))
    found = cluster([obj(api_version, kind)])
    assert (len(found.foreign), found.skipped, found.policies) == (1, (), ())
    assert f"{kind} (1)" in warning(found.foreign)


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [("cilium.io/v2", "CiliumNode"), ("projectcalico.org/v3", "IPPool"), ("v1", "ConfigMap"), ("x.io/v1", "Policy")],
)
def test_other_kinds_of_these_groups_are_skipped(api_version: str, kind: str) -> None:
    found = cluster([obj(api_version, kind)])
    assert (found.foreign, len(found.skipped)) == ((), 1)


@pytest.mark.parametrize("api_version", ["extensions/v1beta1", "networking.k8s.oi/v1", "example.org/v1", ""])
def test_a_network_policy_of_an_unknown_group_is_an_error(api_version: str) -> None:
    """Its author may have mistyped the group."""
    with pytest.raises(PolicyError, match="apiVersion: expected networking"):
        cluster([obj(api_version, "NetworkPolicy")])


def test_the_warning_counts_each_kind() -> None:
    names = ["GlobalNetworkPolicy a", "CiliumNetworkPolicy ns/a", "CiliumNetworkPolicy ns/b"]
    assert warning(names) == (
        "3 policies of other APIs are not evaluated and not enforced, so verdicts may be wrong: CiliumNetworkPolicy "
        "(2), GlobalNetworkPolicy (1)"
    )
    assert warning(["AdminNetworkPolicy a"]).startswith("1 policy of other APIs is not evaluated")
    assert warning(["AdminNetworkPolicy a"]).endswith("ClusterNetworkPolicy supersedes AdminNetworkPolicy")
    assert warning([]) == ""
