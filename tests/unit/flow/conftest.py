"""Scripted events: two pods of this node, one Service, policies on the second pod."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from nodenet.abi import Event
from nodenet.flow import kernel
from nodenet.flow.types import NameTable, Party, PolicyMatch, PolicyName, ServiceName, Workload
from nodenet.model import Direction

WEB, DB = ip_address("10.0.0.1"), ip_address("10.0.0.2")
BASE = Event(
    type=5, point=0, size=160, reason=0, time=1_000, cookie=77, saddr=WEB, daddr=DB, sport=40000, dport=5432,
    protocol=6, direction=2, ct_status=0, tcp_flags=2, icmp_type=0, icmp_code=0, endpoint_id=1, src_identity=300,
    dst_identity=301, rule_id=0, service_id=0, ifindex=5, length=74, src_mac="02:00:00:00:00:01",
    dst_mac="02:00:00:00:00:02", ip_version=4, is_reply=0,
)  # fmt: skip


@pytest.fixture
def make_event() -> Callable[..., Event]:
    """An event of the first packet of web -> db, with changes."""
    return lambda **changes: BASE._replace(**changes)


@pytest.fixture
def names() -> NameTable:
    web = Party(
        300, "shop", "web-1", ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"),
        (Workload("Deployment", "web"),), 1, (WEB,),
    )  # fmt: skip
    db = Party(301, "shop", "db-0", ("k8s:app=db", "k8s:tier=data"), (Workload("StatefulSet", "db"),), 2, (DB,))
    return NameTable(
        addresses={WEB: web, DB: db},
        identities={301: Party(301, "shop", labels=("k8s:app=db",))},
        endpoints={1: web, 2: db},
        netns_cookies={4242: web},
        services={9: ServiceName("shop", "database")},
        frontends={(ip_address("10.96.0.5"), 5432, 6): ServiceName("shop", "database")},
        rules={55: PolicyName("shop", "let-web", "ingress[0]", PolicyMatch.L3_L4)},
        isolated_by={
            (301, Direction.INGRESS): (PolicyName("shop", "let-web"), PolicyName("shop", "deny-all")),
            (300, Direction.EGRESS): (PolicyName("shop", "web-out"),),
        },
    )


@pytest.fixture
def make_flow(make_event: Callable[..., Event], names: NameTable) -> Callable[..., Any]:
    """A flow of such an event; `number` and `time` (ns since the epoch) may be given."""

    def make(number: int = 1, **changes: Any) -> Any:
        return kernel.to_flow(make_event(**changes), names, 0, number)

    return make
