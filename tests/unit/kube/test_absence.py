"""Optional kinds: not installed, installed later, gone again; and servers that only seem not to know them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from nodenet import kinds
from nodenet.agent.api_health import as_rows
from nodenet.kinds import ApiResource
from nodenet.kube.absence import GONE_CHECKS, GONE_SECONDS, LAST_POLL_SECONDS, Absence
from nodenet.kube.client import KubeClient
from nodenet.model import Namespace, ObjectRef
from nodenet.store import Delta, Listing, Op, Removal, Store, StoreEvent
from tests.unit.kube.api import HOLD, Script, event, namespace, page, take, watching

GROUP = "policy.example.com"
# The product declares no optional kind yet: a Namespace of a custom group stands for one.
OPTIONAL = replace(
    kinds.NAMESPACE,
    resource=ApiResource(GROUP, "v1alpha1", "Namespace", "tenants", namespaced=False),
    optional=True,
)
NOT_FOUND = (404, b"404 page not found\n")
BASE = f"/apis/{GROUP}/v1alpha1"
DOCUMENT = f"/apis/{GROUP}"
NEWER = f"/apis/{GROUP}/v1beta1"


def groups(*names: str) -> dict[str, Any]:
    found = [{"name": name, "versions": [{"groupVersion": f"{name}/v1alpha1"}]} for name in names]
    return {"kind": "APIGroupList", "groups": found}


def versions(*found: str) -> dict[str, Any]:
    """/apis of a server whose group has these versions."""
    served = [{"groupVersion": f"{GROUP}/{version}"} for version in found]
    return {"kind": "APIGroupList", "groups": [{"name": GROUP, "versions": served}, {"name": "apiextensions.k8s.io"}]}


def resources(*names: str) -> dict[str, Any]:
    return {"kind": "APIResourceList", "resources": [{"name": name} for name in names]}


@dataclass
class Cluster(Script):
    """Discovery documents by path, and a script for the kind itself."""

    discovery: dict[str, Any] = field(
        default_factory=lambda: {BASE: NOT_FOUND, "/apis": groups("apiextensions.k8s.io")}
    )
    asked: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == DOCUMENT and DOCUMENT not in self.discovery:
            return web.json_response({"kind": "APIGroup"})
        if request.path not in self.discovery:
            return await super().handle(request)
        self.asked.append(request.path)
        answer = self.discovery[request.path]
        code, body = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(body, bytes):
            return web.Response(status=code, body=body)
        return web.json_response(body, status=code)


def optional(script: Script, **options: Any) -> Any:
    return watching(script, OPTIONAL, kinds=[OPTIONAL], **options)


def state(client: KubeClient) -> str:
    found: str = as_rows(client.stats, 0.0)["Namespace"]["state"]
    return found


def emptied() -> Listing:
    return Listing(OPTIONAL, ())


@pytest.mark.parametrize(
    "discovery",
    [
        {BASE: NOT_FOUND, "/apis": groups("apiextensions.k8s.io")},
        {
            BASE: NOT_FOUND,
            "/apis": {
                "kind": "APIGroupList",
                "groups": [{"name": GROUP, "versions": []}, {"name": "apiextensions.k8s.io"}],
            },
        },
        {BASE: resources("others", "others/status"), "/apis": versions("v1alpha1")},
        # The group is served with other kinds only, also in other versions.
        {BASE: NOT_FOUND, "/apis": versions("v1beta1"), NEWER: resources("others")},
        {BASE: resources("others"), "/apis": versions("v1beta1", "v1alpha1"), NEWER: resources("others")},
    ],
)
async def test_a_kind_that_is_not_installed_is_an_empty_list(discovery: dict[str, Any]) -> None:
    script = Cluster([NOT_FOUND, NOT_FOUND, NOT_FOUND, page(namespace("a"))], discovery=discovery)
    async with optional(script) as (client, events, pauses):
        assert await take(events, 1) == [emptied()]
        store = Store([OPTIONAL])
        store.feed(emptied())
        assert store.synced
        looking = asyncio.ensure_future(take(events, 1))
        while not pauses.seconds:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert state(client) == "not installed"
        assert client.stats[OPTIONAL].errors == 0
        # It comes.
        assert await looking == [Listing(OPTIONAL, (Namespace("a", {}),))]
        assert state(client) == "watched"
        assert pauses.seconds == [1, 2, 4]


async def test_a_kind_of_an_unknown_group_costs_one_request_a_look() -> None:
    script = Cluster([NOT_FOUND, page(namespace("a"))])
    script.discovery[DOCUMENT] = NOT_FOUND
    async with optional(script) as (client, events, pauses):
        assert await take(events, 1) == [emptied()]
        looking = asyncio.ensure_future(take(events, 1))
        while len(pauses.seconds) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (state(client), client.stats[OPTIONAL].errors) == ("not installed", 0)
        assert script.asked[:5] == [BASE, "/apis", *[DOCUMENT] * 3]
        assert len(script.list_queries) == 1
        script.discovery[DOCUMENT] = {"kind": "APIGroup"}
        assert await looking == [Listing(OPTIONAL, (Namespace("a", {}),))]


OTHER_VERSION = [
    {BASE: NOT_FOUND, "/apis": versions("v1beta1"), NEWER: resources("others", "tenants")},
    {BASE: resources("others"), "/apis": versions("v1beta1", "v1alpha1"), NEWER: resources("tenants")},
]


@pytest.mark.parametrize("discovery", OTHER_VERSION)
async def test_objects_stay_while_another_version_is_served(
    discovery: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition was replaced by one with another version: the objects exist, and the agent cannot read them."""
    now = [1000.0]

    def later() -> float:
        now[0] += GONE_SECONDS
        return now[0]

    monkeypatch.setattr("nodenet.kube.client.time", SimpleNamespace(monotonic=later))
    script = Cluster([page(namespace("a")), NOT_FOUND], watches=[404], discovery=discovery)
    async with optional(script) as (client, events, pauses):
        assert await take(events, 1) == [Listing(OPTIONAL, (Namespace("a", {}),))]
        going = asyncio.ensure_future(take(events, 1))
        while len(pauses.seconds) < 2 * GONE_CHECKS and not going.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not going.done()
        assert state(client) == "failing"
        assert f"tenants.{GROUP} is served as {GROUP}/v1beta1" in client.stats[OPTIONAL].error
        assert f"nodenet reads {GROUP}/v1alpha1" in client.stats[OPTIONAL].error
        # The version comes back.
        script.lists = [page(namespace("b"))]
        assert await going == [Listing(OPTIONAL, (Namespace("b", {}),))]
        assert state(client) == "watched"


@pytest.mark.parametrize("discovery", OTHER_VERSION)
async def test_another_version_that_comes_later_is_trouble(discovery: dict[str, Any]) -> None:
    """The kind was not installed. Its objects of another version are not in force, and status must say so."""
    script = Cluster([NOT_FOUND])
    async with optional(script) as (client, events, pauses):
        assert await take(events, 1) == [emptied()]
        looking = asyncio.ensure_future(take(events, 1))
        while not pauses.seconds:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert state(client) == "not installed"
        script.discovery = discovery
        while not client.stats[OPTIONAL].error:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert "v1beta1" in client.stats[OPTIONAL].error
        assert state(client) == "failing"
        # A proxy's 404 is no proof that it is gone again.
        script.discovery = {BASE: NOT_FOUND, "/apis": NOT_FOUND, DOCUMENT: NOT_FOUND}
        before = len(pauses.seconds)
        while len(pauses.seconds) < before + 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert state(client) == "failing"
        script.discovery = {BASE: NOT_FOUND, "/apis": groups("apiextensions.k8s.io")}
        while client.stats[OPTIONAL].error:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert state(client) == "not installed"
        script.lists = [page()]
        assert await looking == [emptied()]


async def test_the_pauses_between_looks_end_at_the_longest() -> None:
    script = Cluster([NOT_FOUND] * 9 + [page()])
    async with optional(script) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds[-3:] == [LAST_POLL_SECONDS] * 3


@pytest.mark.parametrize(
    "discovery",
    [
        # A proxy that answers everything with 404.
        {BASE: NOT_FOUND, "/apis": NOT_FOUND},
        {BASE: (503, b"starting"), "/apis": groups()},
        # No API server that knows custom resources at all.
        {BASE: NOT_FOUND, "/apis": groups()},
        {BASE: NOT_FOUND, "/apis": {"kind": "Status", "groups": None}},
        {BASE: NOT_FOUND, "/apis": (200, b"<html>")},
        {BASE: (403, b"no")},
        # Discovery lists the kind, or its group: the 404 is wrong.
        {BASE: resources("tenants")},
        {BASE: NOT_FOUND, "/apis": groups("apiextensions.k8s.io", GROUP)},
        {BASE: {"resources": []}},
        {BASE: resources("others"), "/apis": versions("v1beta1")},
        # Other versions of the group cannot be asked.
        {BASE: NOT_FOUND, "/apis": versions("v1beta1"), NEWER: NOT_FOUND},
        {BASE: NOT_FOUND, "/apis": versions("v1beta1"), NEWER: {"resources": []}},
    ],
)
async def test_a_404_that_discovery_does_not_confirm_is_trouble(discovery: dict[str, Any]) -> None:
    script = Cluster([NOT_FOUND, page(namespace("a"))], discovery=discovery)
    async with optional(script) as (client, events, _):
        assert await take(events, 1) == [Listing(OPTIONAL, (Namespace("a", {}),))]
        assert client.stats[OPTIONAL].errors == 1


async def test_a_kind_that_is_not_optional_must_be_there() -> None:
    script = Cluster([NOT_FOUND, page()], discovery={"/api/v1": resources("pods")})
    async with watching(script) as (client, events, _):
        assert await take(events, 1) == [Listing(kinds.NAMESPACE, ())]
        assert client.stats[kinds.NAMESPACE].errors == 1
        assert script.asked == []


async def test_objects_outlive_a_404_until_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch ends with 404, and so do the lists after it. Nothing is told before GONE_SECONDS have passed."""
    now = [1000.0]
    monkeypatch.setattr("nodenet.kube.client.time", SimpleNamespace(monotonic=lambda: now[0]))
    script = Cluster([page(namespace("a")), NOT_FOUND], watches=[404])
    async with optional(script) as (client, events, pauses):
        assert await take(events, 1) == [Listing(OPTIONAL, (Namespace("a", {}),))]
        going = asyncio.ensure_future(take(events, 1))
        while len(pauses.seconds) < 20 and not going.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not going.done()
        assert "its objects are deleted only if" in client.stats[OPTIONAL].error
        assert state(client) == "failing"
        now[0] += GONE_SECONDS
        assert await going == [emptied()]
        looking = asyncio.ensure_future(take(events, 1))
        while client.stats[OPTIONAL].installed:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert state(client) == "not installed"
        # It comes again: the same objects count again.
        script.lists = [page(namespace("a"))]
        assert await looking == [Listing(OPTIONAL, (Namespace("a", {}),))]


async def test_another_answer_starts_the_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]

    def later() -> float:
        now[0] += 0.9 * GONE_SECONDS / GONE_CHECKS
        return now[0]

    monkeypatch.setattr("nodenet.kube.client.time", SimpleNamespace(monotonic=later))
    first, last = page(namespace("a")), page(namespace("b"))
    script = Cluster([first, *[NOT_FOUND, NOT_FOUND, (503, b"")] * 9, last], watches=[400, [HOLD]])
    async with optional(script) as (_, events, _):
        found = await take(events, 2)
        assert found == [Listing(OPTIONAL, (Namespace(name, {}),)) for name in ("a", "b")]


async def test_a_kind_whose_objects_are_gone_already_goes_at_once() -> None:
    """So does a CRD that is removed in order: each object first."""
    script = Cluster([page(namespace("a")), NOT_FOUND], watches=[[event("DELETED", namespace("a"))], 404])
    async with optional(script) as (_, events, _):
        found = await take(events, 3)
        assert found[1:] == [Removal(OPTIONAL, A), emptied()]


async def test_a_watch_goes_on_after_the_kind_came() -> None:
    script = Cluster([NOT_FOUND, page(version="7")], watches=[[event("ADDED", namespace("a", "8")), HOLD]])
    async with optional(script) as (_, events, _):
        found = await take(events, 3)
        assert found[:2] == [emptied(), emptied()]
        assert script.watch_queries[0]["resourceVersion"] == "7"


A = ObjectRef("", "a")
EVENTS: dict[str, StoreEvent] = {
    "listed": Listing(OPTIONAL, (Namespace("a", {}),)),
    "unreadable": Listing(OPTIONAL, (), (A,)),
    "emptied": Listing(OPTIONAL, ()),
    "added": Delta(Op.ADDED, Namespace("a", {})),
    "deleted": Removal(OPTIONAL, A),
}
LOOKS = st.lists(
    st.tuples(st.sampled_from([*EVENTS, "unclear", "missing", "missing", "missing"]), st.floats(0, 40)), max_size=40
)


@given(LOOKS)
def test_known_objects_go_only_after_an_unbroken_row_of_evidence(looks: list[tuple[str, float]]) -> None:
    tracked = Absence(OPTIONAL)
    now, row, known = 0.0, list[float](), False
    for answer, passed in looks:
        now += passed
        if answer == "missing":
            row.append(now)
            enough = len(row) >= GONE_CHECKS and now - row[0] >= GONE_SECONDS
            assert tracked.record_missing(now) == (enough or not known)
            known = known and not enough
        else:
            row.clear()
            if answer == "unclear":
                tracked.reset()
            else:
                tracked.record_event(EVENTS[answer])
                known = answer in ("listed", "unreadable", "added")
        assert not (known and tracked.confirmed)
