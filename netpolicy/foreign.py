"""Recognizes policies of other APIs: they decide about connections too, but this engine does not evaluate them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# Kinds by API group, as in apiVersion.
_CALICO = ("NetworkPolicy", "GlobalNetworkPolicy")
KINDS: Mapping[str, tuple[str, ...]] = {
    "cilium.io": ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
    "crd.projectcalico.org": _CALICO,
    "projectcalico.org": _CALICO,
    "policy.networking.k8s.io": ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy"),
    "crd.antrea.io": ("NetworkPolicy", "ClusterNetworkPolicy"),
    "k8s.ovn.org": ("EgressFirewall",),
}
# Kinds whose API was replaced by another one.
_SUPERSEDED = ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy")


def is_policy(obj: Mapping[str, Any]) -> bool:
    """True for an object of one of KINDS."""
    group, _, _ = str(obj.get("apiVersion") or "").rpartition("/")
    return obj.get("kind") in KINDS.get(group, ())


def warning(names: Iterable[str]) -> str:
    """A sentence for people, with the number of objects of each kind; empty if there are none.

    `names`: "KIND NAMESPACE/NAME" or "KIND NAME".
    """
    kinds = Counter(name.partition(" ")[0] for name in names)
    if not kinds:
        return ""
    counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
    found = "1 policy of other APIs is" if kinds.total() == 1 else f"{kinds.total()} policies of other APIs are"
    text = f"{found} not evaluated and not enforced, so verdicts may be wrong: {counts}"
    if any(kind in kinds for kind in _SUPERSEDED):
        text += "; ClusterNetworkPolicy supersedes " + " and ".join(kind for kind in _SUPERSEDED if kind in kinds)
    return text
