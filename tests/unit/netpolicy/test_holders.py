"""Whose an address is: the live pod's, whatever the pods are called."""

from __future__ import annotations

import random
from ipaddress import ip_address
from itertools import permutations
from typing import Any

import pytest

from netpolicy.ends import connections, parse_traffic
from netpolicy.holders import UNKNOWN, Claims, Standing, holders
from netpolicy.objects import cluster
from nodenet.model import ObjectRef, Pod

IP = ip_address("10.0.0.1")
OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def pod(name: str, standing: Standing = UNKNOWN, **fields: Any) -> Pod:
    more = {"phase": "Running"} | fields
    return Pod(ObjectRef("ns", name), f"uid-{name}", {}, ips=(IP,), standing=standing, **more)


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
@pytest.mark.parametrize(
    ("live", "ghost"),
    [
        ((Standing(), {}), (Standing(lasting=False), {})),
        # A terminating pod may be ready, and the live one not yet.
        ((Standing(ready=False), {}), (Standing(lasting=False, ready=True, started=NEW), {})),
        ((Standing(ready=True, started=OLD), {}), (Standing(started=NEW), {})),
        ((Standing(started=NEW), {}), (Standing(started=OLD), {})),
        # The new sandbox is there, its containers do not run yet.
        ((Standing(started=NEW), {"phase": "Pending"}), (Standing(started=OLD), {})),
        ((Standing(), {}), (Standing(ready=True), {"phase": "Succeeded"})),
        ((Standing(), {}), (Standing(ready=True), {"phase": "Failed"})),
        ((Standing(), {}), (Standing(ready=True), {"host_network": True})),
        ((Standing(), {}), (Standing(), {"phase": "Pending"})),
    ],
)
def test_the_live_pod_has_the_address(live: Any, ghost: Any, names: tuple[str, str]) -> None:
    pods = [pod(names[0], live[0], **live[1]), pod(names[1], ghost[0], **ghost[1])]
    for order in permutations(pods):
        assert holders(order) == {IP: pods[0]}


def test_equal_claims_give_one_answer_in_any_order() -> None:
    pods = [pod(name) for name in "abc"]
    assert {holders(order)[IP].ref.name for order in permutations(pods)} == {"c"}


def test_claims_know_the_holders_after_any_changes() -> None:
    """Pods list no, one or several addresses, some of them twice, and share them with other pods."""
    chance = random.Random(1)
    addresses = [ip_address(f"10.0.0.{number}") for number in range(1, 5)]
    claims: Claims[Pod] = Claims()
    pods: dict[str, Pod] = {}
    for _ in range(2000):
        name = chance.choice("abcdef")
        new = None
        if chance.random() < 0.7:
            phase = chance.choice(["Running", "Pending", "Succeeded"])
            ips = tuple(chance.choices(addresses, k=chance.randrange(4)))
            new = Pod(ObjectRef("ns", name), f"uid-{name}", {}, ips=ips, phase=phase)
        before = holders(pods.values())
        touched = claims.change(pods.pop(name, None), new)
        if new is not None:
            pods[name] = new
        after = holders(pods.values())
        assert {address: claims.holder(address) for address in addresses} == {a: after.get(a) for a in addresses}
        assert {address for address in addresses if before.get(address) is not after.get(address)} <= {*touched}


def test_times_that_are_no_times_do_not_count() -> None:
    assert Standing.of(None, "True", "yesterday", NEW) == Standing(True, True, NEW)
    assert Standing.of(NEW, "Unknown", None, 7) == Standing(False, False, "")


def test_manifests_are_read_with_the_same_rule() -> None:
    """`policy explain --lab` asks by address too."""

    def obj(name: str, ready: str, **metadata: Any) -> dict[str, Any]:
        status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]}
        return {"kind": "Pod", "metadata": {"name": name, "namespace": "ns", **metadata}, "spec": {}, "status": status}

    for ghost in (obj("z", "False"), obj("z", "True", deletionTimestamp=NEW)):
        given = cluster([obj("a", "True"), ghost])
        (found,) = connections(given, "8.8.8.8", "10.0.0.1", parse_traffic("80"))
        assert found.destination.name == "ns/a"
