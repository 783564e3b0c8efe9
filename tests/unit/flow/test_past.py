"""A pod's last flows have its name, and no flow has the name of the pod that had the address before."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

import pytest

from netpolicy.holders import Standing
from nodenet.abi import U32, LpmKey
from nodenet.compile.state import LocalNode, Names
from nodenet.endpoint import AttachmentKey
from nodenet.flow import past
from nodenet.flow.kernel import to_flow
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.past import LINGER_NS, PastNames
from nodenet.flow.types import Party
from nodenet.model import Endpoint, ObjectRef, Pod
from nodenet.store import Snapshot
from tests.unit.flow.conftest import BASE

IP, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2")
WEB = Pod(ObjectRef("shop", "web"), "u1", {"app": "web"}, ips=(IP,), phase="Running", workload=("Job", "web"))
NEXT = Pod(ObjectRef("shop", "next"), "u2", {"app": "next"}, ips=(IP,), phase="Running")
ENDPOINT = Endpoint(
    7, "c1", "eth0", "/run/netns/x", "veth1", 5, "02:00:00:00:00:01", (IP,), WEB.ref, "u1", netns_cookie=4242
)
GONE = 1_000_000


class World:
    """A builder that is given one state after the other, and flows in the table of the last."""

    def __init__(self) -> None:
        self.builder = NameTableBuilder()

    def show(self, *pods: Pod, endpoint: Endpoint | None = None, now: int = 0, identity: int = 300) -> None:
        snapshot = Snapshot(
            pods=MappingProxyType({pod.ref: pod for pod in pods}),
            endpoints=MappingProxyType({AttachmentKey("c1", "eth0"): endpoint} if endpoint else {}),
        )
        held = any(pod.ips for pod in pods)
        ipcache = {LpmKey.host(IP): U32(identity)} if held else {}
        self.table = self.builder.build(snapshot, Names(), LocalNode("node1"), ipcache, now=now)

    def name(self, time: int, identity: int = 0) -> str:
        event = BASE._replace(time=time, saddr=IP, src_identity=identity, endpoint_id=0)
        return to_flow(event, self.table, 0, 1).source.pod


@pytest.fixture
def world() -> World:
    found = World()
    found.show(WEB)
    return found


@pytest.mark.parametrize("after", [(), (replace(WEB, phase="Succeeded"),), (replace(WEB, phase="Failed"),)])
@pytest.mark.parametrize("identity", [0, 2, 300])
def test_the_name_stays_for_a_while(world: World, after: tuple[Pod, ...], identity: int) -> None:
    """Deleted by force, or finished. The datapath may know the identity still, or may call it the world."""
    world.show(*after, now=GONE)
    for time in (0, GONE, GONE + LINGER_NS - 1):
        assert world.name(time, identity) == "web"
    assert world.name(GONE + LINGER_NS, identity) == ""
    # By the event's time, also when no table was built meanwhile; and a later table has forgotten it.
    world.show(now=GONE + LINGER_NS + 1)
    assert not world.table.past


def test_labels_and_workloads_stay_too(world: World) -> None:
    world.show(now=GONE)
    source = to_flow(BASE._replace(time=GONE, saddr=IP, src_identity=2), world.table, 0, 1).source
    assert (source.workloads[0].name, source.identity) == ("web", 2)
    assert "k8s:app=web" in source.labels


def test_an_event_of_another_identity_is_not_its(world: World) -> None:
    """Some other pod has the address already: the datapath judged by its identity before the API showed the address."""
    world.show(now=GONE)
    assert world.name(GONE + 1, 301) == ""


def test_a_new_pod_has_its_flows_from_then_on_and_the_old_one_those_before(world: World) -> None:
    world.show(NEXT, now=GONE, identity=301)
    assert world.name(GONE - 1, 301) == "web"
    for identity in (0, 2, 301):
        assert world.name(GONE, identity) == "next"
    # The maps follow the table: until then they judge by the old identity, and it was the old pod's packet.
    assert world.name(GONE + 1, 300) == "web"
    assert world.name(GONE + LINGER_NS, 300) == "next"


def test_of_replicas_with_one_identity_the_new_one_wins_at_once(world: World) -> None:
    world.show(NEXT, now=GONE, identity=300)
    assert world.name(GONE, 300) == "next"


def test_a_pod_that_comes_back_is_not_past(world: World) -> None:
    world.show(now=GONE)
    world.show(WEB, now=GONE + 1)
    assert not world.table.past
    assert world.name(GONE + 2, 300) == "web"


def test_two_pods_with_one_address_the_live_one_names_the_flows() -> None:
    live = replace(NEXT, standing=Standing(ready=True))
    for ghost in (Standing(lasting=False, ready=True), Standing()):
        for order in ((live, replace(WEB, standing=ghost)), (replace(WEB, standing=ghost), live)):
            world = World()
            world.show(*order)
            assert world.name(0) == "next"


def test_an_endpoint_of_this_node_keeps_its_name_as_long_as_it_is_there(world: World) -> None:
    """Its pod was deleted by force and its container still runs: events of its sockets have the name too."""
    world.show(WEB, endpoint=ENDPOINT)
    world.show(endpoint=ENDPOINT, now=GONE)
    assert world.name(GONE + 10 * LINGER_NS) == "web"
    assert world.table.endpoints[7].pod == world.table.netns_cookies[4242].pod == "web"
    # Another pod of another node shows the address in its status: this node knows better.
    world.show(NEXT, endpoint=ENDPOINT, now=GONE)
    assert world.name(GONE) == "web"
    world.show(NEXT, now=2 * GONE)
    assert world.name(2 * GONE, 301) == "next"


def test_an_endpoint_whose_pod_was_never_shown_has_the_name_of_its_record() -> None:
    """Or another pod of that name is shown, with another uid: its labels are not this one's."""
    for pods in ((), (replace(WEB, uid="u9"),)):
        world = World()
        world.show(*pods, endpoint=ENDPOINT)
        assert world.name(0) == "web"
        assert world.table.addresses[IP].labels == ("k8s:io.kubernetes.pod.namespace=shop",)
    world = World()
    world.show(endpoint=replace(ENDPOINT, pod=ObjectRef("", "")))
    assert world.name(0) == ""


def test_memory_is_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MOST", 16)
    names = PastNames()
    for number in range(30):
        names.update({ip_address((10 << 24) + number): Party(0, "ns", f"pod{number}")}, number)
    found = names.update({}, 30)
    assert [entry.party.pod for entry in found.values()] == [f"pod{number}" for number in range(14, 30)]
