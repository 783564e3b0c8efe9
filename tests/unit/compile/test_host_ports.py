"""The hostPorts of this node's pods become frontends on the node's addresses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.abi import FrontendFlag, FrontendKey
from nodenet.compile import Compiler, DesiredState, LocalNode, Names, compile_once
from nodenet.model import HostPort, ObjectRef, Pod, Protocol
from nodenet.store import Op, Store
from tests.unit.compile.build import TCP, UDP, endpoint, node, pod, service, slice_, store_of

OWN = frozenset(map(ip_address, ("192.0.2.1", "10.0.0.1", "2001:db8::1", "fe80::1")))
LOCAL = LocalNode("node1", OWN)
KEEP, NODE_ONLY = FrontendFlag.KEEP_SOURCE, FrontendFlag.KEEP_SOURCE | FrontendFlag.NODE_ONLY


def web(*ports: HostPort, name: str = "web", **more: Any) -> Pod:
    return pod(name, "10.1.0.5", node_name="node1", host_ports=ports, **more)


def port(number: int = 8080, target: int = 80, protocol: Protocol = TCP, address: str | None = None) -> HostPort:
    return HostPort(number, target, protocol, ip_address(address) if address else None)


def compiled(*objects: object, local: LocalNode = LOCAL) -> tuple[DesiredState, Names]:
    return compile_once(store_of(*objects).snapshot(), local)


def places(state: DesiredState) -> dict[str, tuple[str, int]]:
    """Address -> backend and flags, for each frontend with one backend."""
    frontends, backends = state.tables["nn_frontend"], state.tables["nn_backend"]
    found = {}
    for key, entry in frontends.items():
        if not key.slot:
            assert (entry.backends, key.scope) == (1, 0)
            (backend,) = (b for k, b in backends.items() if k.value == frontends[key._replace(slot=1)].backend_id)
            assert backend.protocol == key.protocol
            found[f"{key.addr} {key.port}/{key.protocol}"] = (f"{backend.addr} {backend.port}", entry.flags)
    return found


def warnings(names: Names) -> list[str]:
    return [str(one) for one in names.warnings]


def test_it_is_served_on_all_addresses_of_the_node() -> None:
    """On the loopback for processes of the node only: that of a pod is the pod's own."""
    state, names = compiled(web(port()), endpoint(1, "web", "10.1.0.5", "fd00:1::5"))
    assert places(state) == {
        "10.0.0.1 8080/6": ("10.1.0.5 80", KEEP),
        "127.0.0.1 8080/6": ("10.1.0.5 80", NODE_ONLY),
        "192.0.2.1 8080/6": ("10.1.0.5 80", KEEP),
        "::1 8080/6": ("fd00:1::5 80", NODE_ONLY),
        "2001:db8::1 8080/6": ("fd00:1::5 80", KEEP),
    }
    assert not names.warnings
    assert not names.services, "a flow to it names no Service"
    assert {name.ref for name in names.host_ports.values()} == {ObjectRef("default", "web")}
    # The node's other ports stay its own.
    assert {entry.value for entry in state.tables["nn_service_addr"].values()} == {0}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", {"192.0.2.1 8080/17": ("10.1.0.5 80", KEEP)}),
        ("127.0.0.1", {"127.0.0.1 8080/17": ("10.1.0.5 80", NODE_ONLY)}),
        ("127.0.0.2", {"127.0.0.2 8080/17": ("10.1.0.5 80", NODE_ONLY)}),
        ("2001:db8::1", {}),
        (
            "0.0.0.0",
            {
                "10.0.0.1 8080/17": ("10.1.0.5 80", KEEP),
                "127.0.0.1 8080/17": ("10.1.0.5 80", NODE_ONLY),
                "192.0.2.1 8080/17": ("10.1.0.5 80", KEEP),
            },
        ),
        ("::", {}),
    ],
)
def test_host_ip(address: str, expected: Any) -> None:
    state, names = compiled(web(port(protocol=UDP, address=address)), endpoint(1, "web", "10.1.0.5"))
    assert places(state) == expected
    assert not names.warnings
    members = [key for key in state.tables["nn_member"] if key.service_id in names.host_ports]
    assert len(members) == len(expected)


def test_pods_with_one_port_on_different_addresses_and_protocols() -> None:
    """The scheduler allows these three on one node."""
    three = [
        web(port(address="127.0.0.1"), name="a"),
        web(port(address="192.0.2.1"), name="b"),
        web(port(protocol=UDP, address="192.0.2.1"), name="c"),
    ]
    ends = [endpoint(number, name, f"10.1.0.{number}") for number, name in enumerate("abc", 1)]
    state, names = compiled(*three, *ends)
    assert {place: found[0] for place, found in places(state).items()} == {
        "127.0.0.1 8080/6": "10.1.0.1 80",
        "192.0.2.1 8080/6": "10.1.0.2 80",
        "192.0.2.1 8080/17": "10.1.0.3 80",
    }
    assert not names.warnings


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "Succeeded"},
        {"phase": "Failed"},
        {"host_network": True},
        {"uid": "another pod of this name"},
        {"host_ports": ()},
    ],
)
def test_a_pod_that_ended_or_is_another_one_has_none(change: Any) -> None:
    end = endpoint(1, "web", "10.1.0.5", uid="uid-web")
    one = web(port())
    assert places(compiled(one, end)[0])
    assert not places(compiled(replace(one, **change), end)[0])
    assert not places(compiled(end)[0])
    assert not places(compiled(one)[0]), "a pod of another node, or one without a network yet"


def test_a_pod_that_is_not_ready_and_one_without_addresses_in_its_status_has_them() -> None:
    """As with portmap: from its CNI ADD. The kubelet writes status.podIPs later."""
    one = replace(web(port()), ips=(), phase="Pending")
    assert places(compiled(one, endpoint(1, "web", "10.1.0.5"))[0])


def test_what_is_not_served_is_said() -> None:
    ports = (port(132, protocol=Protocol.SCTP), port(81, address="198.51.100.1"), port())
    state, names = compiled(web(*ports), endpoint(1, "web", "10.1.0.5"))
    assert {key.split()[1] for key in places(state)} == {"8080/6"}
    assert warnings(names) == [
        "Pod default/web: hostPort 132: SCTP is not served",
        "Pod default/web: hostPort 81: hostIP 198.51.100.1 is not an address of this node",
    ]


def test_a_plugin_serves_them_or_services_are_off() -> None:
    objects = (web(port()), endpoint(1, "web", "10.1.0.5"))
    state, names = compiled(*objects, local=replace(LOCAL, host_ports=False))
    assert not places(state)
    assert not names.warnings
    state, names = compiled(*objects, local=replace(LOCAL, services=False))
    assert not places(state)
    (warning,) = warnings(names)
    assert warning.startswith("Pod default/web: hostPort 8080: not served, because this agent serves no Services")


def test_who_owns_an_address() -> None:
    """A node port and a load balancer's address come first; an externalIP is free text and comes last. Of two pods the
    first by name."""
    this = node("node1", "192.0.2.1")
    objects = [this, endpoint(1, "web", "10.1.0.5"), endpoint(2, "worse", "10.1.0.6")]
    objects += [web(port(address="192.0.2.1")), web(port(address="192.0.2.1"), name="worse")]
    _, names = compiled(*objects)
    clash = "spec.containers[].ports[].hostPort: 192.0.2.1 port 8080 is already served for"
    assert warnings(names) == [f"Pod default/worse: {clash} Pod default/web"]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (
            {"ports": [("", TCP, 80, 8080)]},
            [f"Pod default/{name}: {clash} Service default/s" for name in ("web", "worse")],
        ),
        (
            {"ports": [("", TCP, 8080)], "load_balancer_ips": (ip_address("192.0.2.1"),)},
            [f"Pod default/{name}: {clash} Service default/s" for name in ("web", "worse")],
        ),
        (
            {"ports": [("", TCP, 8080)], "external_ips": (ip_address("192.0.2.1"),)},
            [
                "Service default/s: spec.externalIPs: 192.0.2.1 port 8080 is already served for Pod default/web",
                f"Pod default/worse: {clash} Pod default/web",
            ],
        ),
    ]
    for fields, expected in cases:
        _, names = compiled(*objects, service("s", "10.96.0.1", **fields), slice_("s", "10.1.0.9"))
        assert sorted(warnings(names)) == sorted(expected)


def test_a_pod_and_a_service_of_one_name_are_two() -> None:
    one = service("web", "10.96.0.1", ports=[("", TCP, 80, 8081)])
    objects = (node("node1", "192.0.2.1"), web(port()), endpoint(1, "web", "10.1.0.5"), one, slice_("web", "10.1.0.5"))
    state, names = compiled(*objects)
    assert not names.warnings
    assert len(names.services) == 2
    assert len(names.host_ports) == 3
    assert len([key for key in state.tables["nn_frontend"] if not key.slot]) == 5


def test_pods_elsewhere_cost_no_compilation() -> None:
    store = store_of(web(port()), endpoint(1, "web", "10.1.0.5"))
    compiler = Compiler()
    first, _ = compiler.compile(store.snapshot(), LOCAL)
    store.apply(Op.ADDED, pod("other", "10.2.0.1", node_name="node2", host_ports=(port(),)))
    second, _ = compiler.compile(store.snapshot(), LOCAL)
    for name in ("nn_frontend", "nn_backend", "nn_revnat"):
        assert second.tables[name] is first.tables[name]


# Few of everything, so that pods and Services clash.
PORTS = st.lists(
    st.builds(
        port,
        st.sampled_from([8080, 8081]),
        st.just(80),
        st.sampled_from([TCP, UDP]),
        st.sampled_from([None, "192.0.2.1", "127.0.0.1", "0.0.0.0"]),
    ),
    max_size=2,
)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("pod"), st.sampled_from("abc"), PORTS, st.sampled_from(["Running", "Succeeded"])),
        st.tuples(st.just("endpoint"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("service"), st.sampled_from([8080, 8081]), st.booleans()),
        st.tuples(st.just("local"), st.booleans(), st.booleans()),
    ),
    max_size=8,
)


def _apply(store: Store, change: tuple[Any, ...], local: LocalNode) -> LocalNode:
    match change:
        case ("pod", name, ports, phase):
            store.apply(Op.ADDED, web(*ports, name=name, phase=phase))
        case ("endpoint", name, exists):
            number = ord(name)
            store.apply(Op.ADDED if exists else Op.DELETED, endpoint(number, name, f"10.1.0.{number}"))
        case ("service", number, exists):
            one = service("s", "10.96.0.1", ports=[("", TCP, 80, number)])
            store.apply(Op.ADDED if exists else Op.DELETED, one)
        case (_, host_ports, more):
            extra = {ip_address("192.0.2.9")} if more else set()
            return replace(local, host_ports=host_ports, addresses=OWN | extra)
    return local


@settings(max_examples=100, deadline=None)
@given(CHANGES)
def test_changes_and_a_restart_give_what_compiling_from_nothing_gives(changes: list[tuple[Any, ...]]) -> None:
    store = store_of(node("node1", "192.0.2.1"), slice_("s", "10.1.0.9"))
    compiler, local = Compiler(), LOCAL
    for change in changes:
        local = _apply(store, change, local)
        state, names = compiler.compile(store.snapshot(), local)
        compiler.settle()
    snapshot = store.snapshot()
    state, names = compiler.compile(snapshot, local)
    fresh, fresh_names = compile_once(snapshot, local)
    again = Compiler()
    again.restore(state.tables)
    restarted, restarted_names = again.compile(snapshot, local)
    assert state.tables == fresh.tables == restarted.tables
    for other in (fresh_names, restarted_names):
        assert sorted(warnings(names)) == sorted(warnings(other))
        assert (names.services, names.host_ports) == (other.services, other.host_ports)
    for key, entry in state.tables["nn_frontend"].items():
        assert FrontendKey(*key[:3], 0) in state.tables["nn_frontend"]
        assert not key.slot or any(number.value == entry.backend_id for number in state.tables["nn_backend"])
