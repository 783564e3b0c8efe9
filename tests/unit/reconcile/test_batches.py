"""Many writes at once leave what single writes leave: the same entries, in the same order, and the same account of what
did not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nodenet.abi import FrontendKey
from nodenet.compile import Compiler, LocalNode
from nodenet.reconcile.apply import FullError, apply
from nodenet.reconcile.plan import SERVICE_TABLES, Tables, Write, plan_services
from nodenet.testing import FakeTable
from tests.unit.compile.build import TCP, UDP, service, slice_, store_of, target

COUNT = 60
LIMITED = ("nn_service_addr", "nn_backend", "nn_member", "nn_revnat", "nn_frontend")


class Single(FakeTable):
    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        return 0


def wanted(first: int, backends: int) -> Tables:
    """Services of TCP and UDP, some with addresses for traffic from outside."""
    objects: list[Any] = []
    for number in range(first, first + COUNT):
        name = f"s{number:03}"
        more = {"external_ips": (ip_address(f"192.0.2.{number}"),), "external_local": True} if number % 3 else {}
        objects.append(service(name, f"10.96.0.{number}", ports=[("x", TCP, 80), ("y", UDP, 53)], **more))
        ends = [replace(target(f"10.0.{number}.{n}"), node_name=f"node{1 + n % 2}") for n in range(1, backends + 1)]
        objects.append(slice_(name, *ends, ports=[("x", TCP, 8080), ("y", UDP, 53)]))
    return Compiler().compile(store_of(*objects).snapshot(), LocalNode("node1"))[0].tables


def made(
    kind: type[FakeTable], old: Tables, new: Tables, limits: dict[str, int]
) -> tuple[dict[str, list[Any]], Counter[str], tuple[Write, ...], dict[str, Any]]:
    """The entries in the order in which they came, the account, what was left out, and what is believed to be there."""
    tables = {n: kind(n, old.get(n), limits.get(n, 1 << 30)) for n in SERVICE_TABLES}
    held = {name: dict(table.items()) for name, table in tables.items()}
    done: Counter[str] = Counter()
    left: tuple[Write, ...] = ()
    try:
        apply(plan_services(new, held), tables, held, done)
    except FullError as error:
        left = error.left
    return {name: list(table.items()) for name, table in tables.items()}, done, left, held


@pytest.mark.parametrize("limited", ["", *LIMITED])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("restart", [True, False], ids=["from-nothing", "change"])
def test_batches_leave_what_single_writes_leave(limited: str, share: float, restart: bool) -> None:
    old: Tables = {} if restart else wanted(1, 5)
    new = wanted(31, 4)
    limits = {limited: max(len(old.get(limited, {})), int(len(new[limited]) * share))} if limited else {}
    batched, single = made(FakeTable, old, new, limits), made(Single, old, new, limits)
    assert batched == single
    assert {name: dict(entries) for name, entries in batched[0].items()} == batched[3], "the account is wrong"
    if not limited:
        assert {name: dict(entries) for name, entries in batched[0].items() if entries} == {
            name: dict(new[name]) for name in SERVICE_TABLES if new[name]
        }


def test_a_frontend_in_a_full_map_is_complete_or_absent() -> None:
    new = wanted(1, 5)
    full = {"nn_frontend": len(new["nn_frontend"]) // 2}
    (entries, *_) = made(FakeTable, {}, new, full)
    found = dict(entries["nn_frontend"])
    masters = [key for key in found if not key.slot]
    assert len(masters) > COUNT // 2, "slots took the room of all master entries"
    for key in masters:
        assert all(FrontendKey(*key[:3], slot, key.scope) in found for slot in range(1, found[key].backends + 1))


def test_the_first_compilation_needs_no_sorting() -> None:
    """And a table in another order gives the same writes for each frontend."""
    new = wanted(1, 3)
    first = plan_services(new, {})
    turned = dict(sorted(new["nn_frontend"].items(), key=lambda item: (-item[0].slot, item[0])))
    sorted_ = plan_services({**new, "nn_frontend": turned}, {})
    assert set(first) == set(sorted_)

    def by_frontend(writes: list[Write]) -> dict[Any, list[Write]]:
        found: dict[Any, list[Write]] = {}
        for write in writes:
            if write.table == "nn_frontend":
                found.setdefault((write.key[:3], write.key.scope), []).append(write)
        return found

    assert by_frontend(first) == by_frontend(sorted_)
    places = {write.key: place for place, write in enumerate(first) if write.table == "nn_frontend"}
    for key, place in places.items():
        if not key.slot and not key.scope:
            outside = places.get(key._replace(scope=1))
            assert outside is None or outside < place
