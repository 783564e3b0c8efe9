"""Sockets of UDP Services whose backends come and go: real sockets in a throwaway cgroup and network namespace."""

from __future__ import annotations

import pytest

from .sockworld import ONE, PORT, TWO, World

pytestmark = pytest.mark.kernel


@pytest.fixture
def asked(world: World) -> World:
    """Two servers; both Services have the first one; the socket `s` has asked Service one."""
    for port in (9001, 9002):
        world.server(port)
    world.serve(ONE, 9001)
    world.serve(TWO, 9001)
    world.client("s")
    world.ask("s", ONE)
    assert world.process.do("receive", "server9001")[0] == "ask"
    return world


def test_datagrams_leave_a_backend_that_left_their_service_alone(asked: World) -> None:
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("answer", "server9002") == "ask"
    assert asked.process.do("receive", "s") == ["ask", [asked.address(ONE), PORT]]
    asked.ask("s", TWO)
    assert asked.process.do("receive", "server9001")[0] == "ask"


def test_a_service_that_lost_its_last_backend_refuses(asked: World) -> None:
    asked.serve(ONE)
    with pytest.raises(ConnectionRefusedError):
        asked.ask("s", ONE)
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"


def test_datagrams_stay_with_a_backend_that_finishes_its_work(asked: World) -> None:
    asked.serve(ONE, 9002, draining=(9001,))
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9001")[0] == "ask"
    asked.client("new")
    asked.ask("new", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"


def test_datagrams_stay_with_a_backend_whose_slot_moved(asked: World) -> None:
    for port in (9003, 9004):
        asked.server(port)
    asked.serve(ONE, 9002, 9003, 9001, 9004)
    asked.serve(ONE, 9004, 9001)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9001")[0] == "ask"


def test_a_mapped_address_of_an_ipv6_socket_leaves_too(mapped: World) -> None:
    for port in (9001, 9002):
        mapped.server(port)
    mapped.client("s")
    for backend in (9001, 9002):
        mapped.serve(ONE, backend)
        mapped.ask("s", ONE)
        assert mapped.process.do("answer", f"server{backend}") == "ask"
        assert mapped.process.do("receive", "s") == ["ask", [mapped.address(ONE), PORT]]


def test_answers_name_who_was_asked_last_the_service_or_the_backend_itself(any_world: World) -> None:
    any_world.server(9001)
    any_world.serve(ONE, 9001)
    any_world.client("s")
    service, backend = [any_world.address(ONE), PORT], [any_world.backend(), 9001]
    for target in (service, backend, service):
        any_world.process.do("sendto", "s", "ask", *target)
        assert any_world.process.do("answer", "server9001") == "ask"
        assert any_world.process.do("receive", "s") == ["ask", target]
    # A connected one sends without an address: that is no direct call.
    any_world.process.do("connect", "s", *service)
    for _ in range(2):
        any_world.process.do("send", "s", "ask")
        assert any_world.process.do("answer", "server9001") == "ask"
        assert any_world.process.do("receive", "s") == ["ask", service]
    assert any_world.process.do("peer", "s") == service
    any_world.process.do("connect", "s", *backend)
    assert any_world.process.do("peer", "s") == backend


def test_two_services_of_one_socket_are_given_different_backends(any_world: World) -> None:
    for port in (9001, 9002):
        any_world.server(port)
    any_world.serve(ONE, 9001)
    any_world.serve(TWO, 9001, 9002)
    for number in range(8):
        name = f"s{number}"
        any_world.client(name)
        for service in (ONE, TWO):
            any_world.ask(name, service)
        # Both questions are out before an answer comes.
        for port in (9002, 9001):
            any_world.process.do("answer", f"server{port}")
        for service in (TWO, ONE):
            assert any_world.process.do("receive", name) == ["ask", [any_world.address(service), PORT]]


def test_backends_are_chosen_evenly(world: World) -> None:
    """A choice that avoids some backends must not prefer others."""
    ports = range(9001, 9005)
    for port in ports:
        world.server(port)
    world.serve(ONE, *ports)
    for number in range(40):
        world.client(f"s{number}")
        world.ask(f"s{number}", ONE)
    for port in ports:
        assert world.process.do("receive", f"server{port}")[0] == "ask"
