"""A change of policies, labels or pods is safe for packets at every single map write.

At no instant does a pod's hook let through, or cut, what both the old and the new state agree on.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodenet.abi import Record
from nodenet.compile.ids import Ids
from nodenet.model import Direction
from nodenet.reconcile.plan import plan_policy
from tests.unit.netpolicy.datapath import Datapath, Packet
from tests.unit.netpolicy.strategies import OUTSIDE, labels, namespaces, pods, policies
from tests.unit.netpolicy.world import compiled, datapath_of, tables_of

Obj = dict[str, Any]
Tables = dict[str, dict[Record, Record]]
Question = tuple[Direction, Packet]
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def packets(cluster: list[Obj]) -> list[Question]:
    """What each pod's own two hooks are asked. The two ends of one connection may be on two nodes: no order of writes
    makes a change of both at once."""
    ips = [ip_address(pod["ip"]) for pod in cluster]
    ends = ips + [ip_address(ip) for ip in OUTSIDE]
    found: list[Question] = []
    for pod in ips:
        for other in ends:
            if pod == other or pod.version != other.version:
                continue
            for protocol, port in (("TCP", 80), ("UDP", 81), ("TCP", 8080)):
                found.append((Direction.EGRESS, Packet(pod, other, protocol, port)))
                found.append((Direction.INGRESS, Packet(other, pod, protocol, port)))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), policies(), namespaces())
def test_no_write_passes_or_cuts_what_both_agree_on(
    cluster: list[Obj],
    names: dict[str, dict[str, str]],
    before: list[Obj],
    after: list[Obj],
    new_names: dict[str, dict[str, str]],
) -> None:
    ids = Ids()
    old = tables_of(cluster, compiled(cluster, names, before, ids))
    new = tables_of(cluster, compiled(cluster, new_names, after, ids))
    check_every_write(old, new, packets(cluster))


@settings(max_examples=40, deadline=None, suppress_health_check=_SLOW)
@given(pods(), pods(), labels(), st.booleans(), namespaces(), policies())
def test_nor_when_pods_change(
    before: list[Obj],
    others: list[Obj],
    relabelled: dict[str, str],
    portless: bool,
    names: dict[str, dict[str, str]],
    same: list[Obj],
) -> None:
    """One pod gets other labels or ports, others come and go, under the same policies.

    Of two pods that change in one batch a packet may meet one as it was and the other as it is: that is an order in
    which the API could have told it too, but a moment that neither the old nor the new state knows.
    """
    ids = Ids()
    changed = {**before[0], "labels": relabelled, **({"ports": []} if portless else {})}
    after = [
        changed,
        *before[1:-1],
        *({**pod, "name": f"new-{pod['name']}", "ip": f"10.0.0.9{n}"} for n, pod in enumerate(others)),
    ]
    old = tables_of(before, compiled(before, names, same, ids))
    new = tables_of(after, compiled(after, names, same, ids))
    check_every_write(old, new, packets(before[:-1]))


def by_label() -> list[Obj]:
    """Isolates the pods of both namespaces. One rule for each value of a label, so that no entry serves two values."""
    rules = [[{"podSelector": {"matchLabels": {"app": value}}, "namespaceSelector": {}}] for value in ("a", "b")]
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"by-label-{value}", "namespace": namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app": value}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": peers, "ports": [{"port": 80}]} for peers in rules],
                "egress": [{"to": peers} for peers in rules],
            },
        }
        for namespace in ("x", "y")
        for value in ("a", "b")
    ]


@settings(max_examples=120, deadline=None, suppress_health_check=_SLOW)
@given(
    pods(), st.lists(labels(), min_size=6, max_size=6), namespaces(), st.just(by_label()) | policies(), st.booleans()
)
def test_nor_are_packets_cut_when_many_pods_change_at_once(
    before: list[Obj], relabelled: list[Obj], names: dict[str, dict[str, str]], same: list[Obj], restarted: bool
) -> None:
    """Pods with the same labels get the same new ones. A packet that is allowed before and after, and also while one
    of its ends has changed and the other has not, is allowed at every write; also by an agent that has just started
    and does not know what the old identities stood for."""
    kinds = sorted({tuple(sorted(pod["labels"].items())) for pod in before})
    to = dict(zip(kinds, relabelled, strict=False))
    after = [{**pod, "labels": to[tuple(sorted(pod["labels"].items()))]} for pod in before]
    ids = Ids()
    old = tables_of(before, compiled(before, names, same, ids))
    new = tables_of(after, compiled(after, names, same, Ids() if restarted else ids))
    mixed = {}
    for changed in after:
        half = [changed if pod["ip"] == changed["ip"] else pod for pod in before]
        mixed[ip_address(changed["ip"])] = datapath_of(half, compiled(half, names, same))
    allowed = [
        question
        for question in packets(before)
        if all(mixed[end].allows(*question) for end in question[1][:2] if end in mixed)
    ]
    check_every_write(old, new, allowed, (True,))


def check_every_write(
    old: Tables, new: Tables, asked: list[Question], answers: tuple[bool, ...] = (True, False)
) -> None:
    datapath, final = Datapath(), Datapath()
    datapath.load(old)
    final.load(new)
    will = {question: final.allows(*question) for question in asked}
    agreed = {q: answer for q, answer in will.items() if answer in answers and datapath.allows(*q) is answer}
    for table, key, value in plan_policy(new, old):
        if table == "nn_state":
            continue
        if value is None:
            datapath.delete(table, key)
        else:
            datapath.update(table, key, value)
        for question, answer in agreed.items():
            assert datapath.allows(*question) is answer, (table, key, value, question)
    assert {question: datapath.allows(*question) for question in asked} == will
