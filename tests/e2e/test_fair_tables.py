"""A pod opens flows without end, alone and with a helper on another node: the idle flow of another pod goes on, and the
node says what was evicted. The table is small, so that a few thousand flows fill it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from nodenet.lab import names
from nodenet.link import netns
from tests.e2e.labs import Lab, nodenet, running, traces, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

ENTRIES, FLOWS = 1024, 3000
SECONDS = 5.0
WORLD = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: a}}
  - {apiVersion: v1, kind: Pod, metadata: {name: victim, namespace: a, labels: {app: victim}},
     spec: {nodeName: node1, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: flooder, namespace: a, labels: {app: flooder}},
     spec: {nodeName: node1, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: server, namespace: a, labels: {app: server}},
     spec: {nodeName: node2, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: helper, namespace: a, labels: {app: helper}},
     spec: {nodeName: node2, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: one, namespace: a},
     spec: {selector: {app: server}, ports: [{name: p, port: 53, targetPort: 5353, protocol: UDP}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: two, namespace: a},
     spec: {selector: {app: server}, ports: [{name: p, port: 53, targetPort: 5353, protocol: UDP}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: busy, namespace: a}, spec: {selector: {app: helper}, ports: [
      {name: a, port: 1, targetPort: 7001, protocol: UDP}, {name: b, port: 2, targetPort: 7002, protocol: UDP},
      {name: c, port: 3, targetPort: 7003, protocol: UDP}, {name: d, port: 4, targetPort: 7004, protocol: UDP}]}}
  - apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: isolated, namespace: a}
    spec: {podSelector: {matchLabels: {app: victim}}, policyTypes: [Ingress]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("fair") / "world.yaml"
    manifest.write_text(WORLD)
    with running("fair", "--nodes", "2", "-f", manifest, "--agent-set", f"ct_entries={ENTRIES}") as found:
        yield found
    assert traces(found.name) == []


class Sockets:
    """Datagram sockets in the lab's pods."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self._lab = lab
        self._stack = stack
        self._addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in lab.pods("a")}

    def open(self, pod: str, port: int = 0) -> socket.socket:
        place = str(names.netns_path(names.pod_netns(self._lab.name, "a", pod)))
        made = self._stack.enter_context(netns.open_socket(place, socket.AF_INET, socket.SOCK_DGRAM))
        made.settimeout(SECONDS)
        made.bind((self._addresses[pod], port))
        return made


def status(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    return found


@pytest.mark.parametrize("helped", [False, True], ids=["alone", "with a helper"])
def test_a_flood_does_not_cut_the_idle_flow_of_another_pod(lab: Lab, helped: bool) -> None:
    with ExitStack() as stack:
        sockets = Sockets(lab, stack)
        victim, server, flooder = (sockets.open(name) for name in ("victim", "server", "flooder"))
        victim.connect(server.getsockname())
        victim.send(b"call")
        _, source = server.recvfrom(16)
        server.sendto(b"answer", source)
        assert victim.recv(16) == b"answer"
        for number in range(FLOWS):
            flooder.sendto(b"", ("198.51.100.1", 1 + number))
        if helped:
            answer(sockets)
        server.sendto(b"late", source)
        assert victim.recv(16) == b"late"
        # The control: without the flow the victim takes nothing.
        stranger = sockets.open("server")
        stranger.sendto(b"stranger", source)
        victim.settimeout(0.5)
        with pytest.raises(TimeoutError):
            victim.recv(16)
        assert 0 < status(lab)["connections"]["size"] <= ENTRIES
    until(
        lambda: any("live connections were evicted from nn_ct" in one for one in status(lab)["problems"]),
        "status says so",
    )


def answer(sockets: Sockets) -> None:
    """As many flows that the helper answers."""
    ends = [sockets.open("helper") for _ in range(FLOWS // 100)]
    callers = [sockets.open("flooder") for _ in range(100)]
    for helper in ends:
        for caller in callers:
            caller.sendto(b"", helper.getsockname())
            helper.sendto(b"", helper.recvfrom(16)[1])


def service_address(lab: Lab, name: str) -> str:
    return str(lab.json("get", "service", name, "-n", "a")["spec"]["clusterIP"])


def test_a_flood_of_calls_to_services_does_not_cut_the_translated_flow_of_another_pod(lab: Lab) -> None:
    """This process is not in the node's cgroup, so its datagrams are translated packet by packet. The victim calls two
    Services with one backend from one port: only the entries of its second flow know where an answer belongs."""
    one, two, busy = (service_address(lab, name) for name in ("one", "two", "busy"))
    with ExitStack() as stack:
        sockets = Sockets(lab, stack)
        server, victim = sockets.open("server", 5353), sockets.open("victim")
        victim.sendto(b"one", (one, 53))
        _, first = server.recvfrom(16)
        victim.sendto(b"two", (two, 53))
        _, second = server.recvfrom(16)
        assert first[1] == victim.getsockname()[1] != second[1]
        for source in (first, second):
            server.sendto(b"answer", source)
            victim.recv(16)
        helpers = [sockets.open("helper", 7000 + number) for number in range(1, 5)]
        # More flows than the table has slots, each answered.
        for _ in range(FLOWS // 12):
            caller = sockets.open("flooder")
            for number, helper in enumerate(helpers, 1):
                caller.sendto(b"", (busy, number))
                helper.sendto(b"", helper.recvfrom(16)[1])
        server.sendto(b"late", second)
        assert victim.recvfrom(16) == (b"late", (two, 53))
        server.sendto(b"late", first)
        assert victim.recvfrom(16) == (b"late", (one, 53))
        # The control: the table was full.
        problems = status(lab)["problems"]
    until(
        lambda: any("flows to Services were evicted from nn_nat" in one for one in status(lab)["problems"]),
        f"status says so: {problems}",
    )
