"""Missing kernel objects are restored and reported. Foreign ones are reported and not removed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import pytest

from nodenet.agent import integrity as module
from nodenet.agent.attachment import Inspection
from nodenet.agent.integrity import Integrity
from nodenet.agent.ports import Synced
from nodenet.bpf.loader import PinCheck
from nodenet.model import Endpoint, ObjectRef

RIGHT = Inspection()


def endpoint(number: int) -> Endpoint:
    return Endpoint(
        endpoint_id=number,
        container_id=f"c{number}",
        ifname="eth0",
        netns=f"/run/netns/c{number}",
        host_ifname=f"veth{number}",
        host_ifindex=number,
        mac="0a:58:0a:01:00:02",
        ips=(ip_address(f"10.1.0.{number + 1}"),),
        pod=ObjectRef("shop", f"p{number}"),
    )


class Node:
    """A fake kernel in dictionaries: what is attached where, and the effect of a repair."""

    def __init__(self, count: int = 2) -> None:
        self.endpoints = [endpoint(number) for number in range(count)]
        self.seen: dict[Endpoint, Inspection | None] = dict.fromkeys(self.endpoints, RIGHT)
        self.repaired: list[str] = []
        self.refusing = False
        self.sockets: list[str] = []
        self.socket_error: OSError | None = None
        self.pins = PinCheck()
        self.drift = 0
        self.now = 0.0
        self.inspected: list[int] = []
        self.ports = Synced({})
        self.integrity = Integrity(self, self, {}, self, lambda: self.drift, monotonic=lambda: self.now)

    def known(self) -> Sequence[Endpoint]:
        return self.endpoints

    async def inspect(
        self, endpoints: Sequence[Endpoint], _programs: Mapping[str, int]
    ) -> dict[Endpoint, Inspection | None]:
        self.inspected.append(len(endpoints))
        return {one: self.seen[one] for one in endpoints if one in self.seen}

    async def sync_ports(self, endpoints: Sequence[Endpoint]) -> Synced:
        assert endpoints == self.endpoints
        found, self.ports = self.ports, Synced({}, self.ports.problems)
        return found

    async def repair(self, endpoint: Endpoint) -> int:
        self.repaired.append(endpoint.pod.name)
        if self.refusing:
            return 0
        seen = self.seen[endpoint]
        assert seen is not None
        self.seen[endpoint] = Inspection((), seen.before)
        return len(seen.missing)

    def attach_sockets(self) -> list[str]:
        if self.socket_error is not None:
            raise self.socket_error
        changed, self.sockets = self.sockets, []
        return changed

    def check_pins(self) -> PinCheck:
        found, self.pins = self.pins, PinCheck((), self.pins.problems)
        return found


async def test_nothing_is_done_where_all_is_right() -> None:
    node = Node()
    await node.integrity.check()
    assert (node.repaired, node.integrity.problems, node.integrity.recent()) == ([], (), [])
    assert not node.integrity.repairs


async def test_a_missing_program_is_restored_counted_and_shown_for_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.seen[node.endpoints[1]] = Inspection(("endpoint_egress",))
    await node.integrity.check()
    await node.integrity.check()
    assert node.repaired == ["p1"]
    assert node.integrity.repairs == {"program": 1}
    (sentence,) = node.integrity.recent()
    assert "the interface of shop/p1 (veth1) had lost endpoint_egress: put back" in sentence
    assert "veth1" in caplog.text
    node.now = module.SHOWN_SECONDS + 1
    assert node.integrity.recent() == []


async def test_a_program_that_cannot_be_put_back_is_tried_again_and_not_counted() -> None:
    node = Node()
    node.refusing = True
    node.seen[node.endpoints[0]] = Inspection(("endpoint_egress", "endpoint_ingress"))
    await node.integrity.check()
    await node.integrity.check()
    assert node.repaired == ["p0", "p0"]
    assert not node.integrity.repairs


async def test_a_foreign_program_before_ours_is_reported_and_not_removed() -> None:
    node = Node()
    node.seen[node.endpoints[0]] = Inspection((), {"endpoint_ingress": (17, 18)})
    await node.integrity.check()
    (problem,) = node.integrity.problems
    assert "shop/p0" in problem
    assert "bpftool prog show id 17, 18" in problem
    assert "before endpoint_ingress on veth0" in problem
    assert node.repaired == []
    node.seen[node.endpoints[0]] = RIGHT
    await node.integrity.check()
    assert node.integrity.problems == ()


async def test_an_interface_that_is_gone_is_a_problem_at_the_second_look() -> None:
    node = Node()
    node.seen[node.endpoints[0]] = None
    await node.integrity.check()
    assert node.integrity.problems == ()
    await node.integrity.check()
    assert node.integrity.problems == ("endpoint of shop/p0: its interface veth0 is gone",)
    assert node.repaired == []


async def test_socket_programs_pins_and_map_entries_are_counted_apart() -> None:
    node = Node()
    node.sockets, node.pins, node.drift = ["sock_connect4"], PinCheck(("map nn_ct", "program sock_connect4")), 3
    await node.integrity.check()
    await node.integrity.check()
    assert node.integrity.repairs == {"socket program": 1, "pin": 2, "map entry": 3}
    assert len(node.integrity.recent()) == 3


async def test_an_error_of_one_check_does_not_hide_another() -> None:
    node = Node()
    node.seen[node.endpoints[1]] = Inspection(("endpoint_ingress",))
    node.socket_error = OSError(1, "not permitted")
    node.pins = PinCheck((), ("map nn_ct: its pin is wrong",))
    await node.integrity.check()
    assert node.integrity.problems[0] == "map nn_ct: its pin is wrong"
    assert "socket programs are not attached" in node.integrity.problems[1]
    assert node.integrity.repairs == {"program": 1}


async def test_many_endpoints_are_checked_in_chunks_with_bounded_cpu_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(130)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise asyncio.CancelledError

    def attach_sockets() -> list[str]:
        node.now += 0.5 * len(pauses)
        return []

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(node, "attach_sockets", attach_sockets)
    ready = asyncio.Event()
    ready.set()
    with pytest.raises(asyncio.CancelledError):
        await node.integrity.keep(ready)
    assert node.inspected[:3] == [64, 64, 2]
    assert pauses == [module.PAUSE_SECONDS, 25.0]


async def test_it_continues_after_an_error_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    looks = 0

    async def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise asyncio.CancelledError
        assert node.integrity.problems == ("attached programs could not be checked: [Errno 5] no answer",)
        monkeypatch.undo()
        monkeypatch.setattr(module.asyncio, "sleep", sleep)

    async def broken(*_arguments: object) -> dict[Endpoint, Inspection | None]:
        raise OSError(5, "no answer")

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(node, "inspect", broken)
    ready = asyncio.Event()
    ready.set()
    with pytest.raises(asyncio.CancelledError):
        await node.integrity.keep(ready)
    assert node.integrity.problems == ()


async def test_a_port_that_was_taken_out_of_its_bridge_is_reported() -> None:
    node = Node()
    node.ports = Synced({node.endpoints[0]: "it was removed from cni0"}, ("endpoint of shop/p1: moved",))
    for _ in range(2):
        await node.integrity.check()
        assert node.integrity.repairs == {"bridge port": 1}
        assert node.integrity.problems == ("endpoint of shop/p1: moved",)
    [sentence] = node.integrity.recent()
    assert "endpoint of shop/p0: it was removed from cni0: put back" in sentence
