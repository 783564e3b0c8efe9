from __future__ import annotations

from ipaddress import ip_address

from netpolicy.holders import Standing, holders
from nodenet import kinds
from nodenet.endpoint import AttachmentKey
from nodenet.kinds import API_KINDS
from nodenet.model import ObjectRef
from nodenet.store import Delta, Listing, Op, Removal, Store
from tests.unit.compile.build import endpoint, node, pod, service, slice_, store_of


def test_it_is_synced_when_every_kind_was_listed() -> None:
    store = Store()
    for kind in API_KINDS:
        assert not store.synced
        assert store.replace(kind, ())
    assert store.missing == (kinds.ENDPOINT,)
    assert store.replace(kinds.ENDPOINT, ())
    assert store.synced
    assert not store.replace(kinds.ENDPOINT, ())


def test_only_a_real_change_is_one() -> None:
    store = store_of()
    revision = store.revision
    assert store.apply(Op.ADDED, pod("a"))
    assert not store.apply(Op.MODIFIED, pod("a"))
    assert store.apply(Op.MODIFIED, pod("a", "10.0.0.1"))
    assert store.apply(Op.DELETED, pod("a"))
    assert not store.apply(Op.DELETED, pod("a"))
    assert store.revision == revision + 3


def test_a_snapshot_does_not_change_and_shares_what_did_not() -> None:
    store = store_of(pod("a"), node("n"))
    before = store.snapshot()
    store.apply(Op.ADDED, pod("b"))
    after = store.snapshot()
    assert list(before.pods) == [ObjectRef("default", "a")]
    assert len(after.pods) == 2
    assert after.nodes is before.nodes
    assert after.revision == before.revision + 1


def test_a_list_replaces_but_keeps_what_could_not_be_read() -> None:
    store = store_of(service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("c", "10.96.0.3"))
    keep = (ObjectRef("default", "b"), ObjectRef("default", "unheard-of"))
    assert store.feed(Listing(kinds.SERVICE, (service("a", "10.96.0.1"),), keep))
    assert [ref.name for ref in store.snapshot().services] == ["a", "b"]
    assert not store.replace(kinds.SERVICE, (service("a", "10.96.0.1"), service("b", "10.96.0.2")))


def test_events_of_every_shape() -> None:
    store = store_of()
    assert store.feed(Delta(Op.ADDED, slice_("web", "10.0.0.1")))
    assert store.feed(Removal(kinds.ENDPOINT_SLICE, ObjectRef("default", "web-1")))
    assert not store.feed(Removal(kinds.ENDPOINT_SLICE, ObjectRef("default", "web-1")))
    assert store.feed(Delta(Op.ADDED, endpoint(1, "web", "10.0.0.1")))
    assert list(store.snapshot().endpoints) == [AttachmentKey("container1", "eth0")]
    assert store.snapshot().namespaces[ObjectRef("", "default")].name == "default"


def test_a_pods_standing_is_a_change_only_where_two_pods_show_one_address() -> None:
    """A pod that becomes ready costs nothing; one that thereby gets an address is a change."""
    ready, terminating = Standing(ready=True), Standing(lasting=False)
    store = store_of(pod("a", "10.0.0.1"))
    assert not store.apply(Op.MODIFIED, pod("a", "10.0.0.1", standing=ready))
    assert not store.replace(kinds.POD, (pod("a", "10.0.0.1", standing=terminating),))
    store.apply(Op.ADDED, pod("b", "10.0.0.1", "fd00::1"))
    # The snapshot has the newest standing, also that which was no change when it came.
    assert holders(store.snapshot().pods.values())[ip_address("10.0.0.1")].ref.name == "b"
    assert store.apply(Op.MODIFIED, pod("b", "10.0.0.1", "fd00::1", standing=terminating))
    assert store.apply(Op.MODIFIED, pod("a", "10.0.0.1", standing=ready))
    assert holders(store.snapshot().pods.values())[ip_address("10.0.0.1")].ref.name == "a"
    assert store.replace(kinds.POD, (pod("a", "10.0.0.1"), pod("b", "10.0.0.1", "fd00::1", standing=ready)))
    assert holders(store.snapshot().pods.values())[ip_address("10.0.0.1")].ref.name == "b"
    # hostNetwork and finished pods claim nothing, and a deleted one no longer does.
    store.apply(Op.ADDED, pod("host", "10.0.0.1", host_network=True))
    store.apply(Op.ADDED, pod("done", "10.0.0.1", phase="Failed"))
    store.delete(kinds.POD, ("default", "b"))
    assert not store.apply(Op.MODIFIED, pod("a", "10.0.0.1", standing=ready))
