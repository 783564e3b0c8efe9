"""A change of policies, labels or pods is safe for packets at every single map write.

At no instant does a pod's hook let through, or cut, what both the old and the new state agree on.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from hypothesis import HealthCheck, given, settings

from nodenet.abi import EndpointEntry, LpmKey, Record
from nodenet.compile.ids import Ids
from nodenet.model import Direction
from tests.unit.netpolicy.datapath import Datapath, Packet
from tests.unit.netpolicy.strategies import OUTSIDE, namespaces, pods, policies
from tests.unit.netpolicy.world import compiled, tables_of

Obj = dict[str, Any]
Tables = dict[str, dict[Record, Record]]
Question = tuple[Direction, Packet]
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
Write = tuple[str, Record, Record | None]


def writes(old: Tables, new: Tables) -> Iterator[Write]:
    """The contract's order; a value of None deletes."""
    changed = {name: {k: v for k, v in new[name].items() if old[name].get(k) != v} for name in new}
    gone = {name: [k for k in old[name] if k not in new[name]] for name in new}
    yield from (("nn_policy", key, value) for key, value in changed["nn_policy"].items())
    for key, value in changed["nn_endpoint"].items():
        if (early := opened(old["nn_endpoint"].get(key), value)) is not None:
            yield "nn_endpoint", key, early
    by_length = sorted(changed["nn_cidr"].items(), key=lambda item: -prefixlen(item[0]))
    yield from (("nn_cidr", key, value) for key, value in by_length)
    yield from (("nn_cidr", key, None) for key in sorted(gone["nn_cidr"], key=prefixlen))
    yield from (("nn_ipcache", key, value) for key, value in changed["nn_ipcache"].items())
    yield from (("nn_endpoint", key, value) for key, value in changed["nn_endpoint"].items())
    yield from (("nn_endpoint", key, None) for key in gone["nn_endpoint"])
    yield from (("nn_ipcache", key, None) for key in gone["nn_ipcache"])
    yield from (("nn_policy", key, None) for key in gone["nn_policy"])


def opened(old: Record | None, new: Record) -> Record | None:
    """The old entry without the isolation that ends: as good as an allow entry, so it comes with those."""
    if not isinstance(old, EndpointEntry) or not isinstance(new, EndpointEntry) or not old.flags & ~new.flags:
        return None
    return old._replace(flags=old.flags & new.flags)


def prefixlen(key: Record) -> int:
    assert isinstance(key, LpmKey)
    return key.prefixlen


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
@given(pods(), pods(), namespaces(), policies())
def test_nor_when_pods_change(
    before: list[Obj], after: list[Obj], names: dict[str, dict[str, str]], same: list[Obj]
) -> None:
    """Pods get other labels and ports, come and go, under the same policies."""
    ids = Ids()
    old = tables_of(before, compiled(before, names, same, ids))
    new = tables_of(after, compiled(after, names, same, ids))
    staying = [pod for pod in before if pod["ip"] in {other["ip"] for other in after}]
    check_every_write(old, new, packets(staying))


def check_every_write(old: Tables, new: Tables, asked: list[Question]) -> None:
    datapath, final = Datapath(), Datapath()
    datapath.load(old)
    final.load(new)
    will = {question: final.allows(*question) for question in asked}
    agreed = {question: answer for question, answer in will.items() if datapath.allows(*question) is answer}
    for table, key, value in writes(old, new):
        if value is None:
            datapath.delete(table, key)
        else:
            datapath.update(table, key, value)
        for question, answer in agreed.items():
            assert datapath.allows(*question) is answer, (table, key, value, question)
    assert {question: datapath.allows(*question) for question in asked} == will
