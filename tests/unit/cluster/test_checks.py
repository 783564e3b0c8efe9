"""The plans of a connectivity test, and the program in its pods."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodenet.cluster.connectivity import checks, objects, peer
from nodenet.cluster.connectivity.values import Check, Peer, Round, Skipped, Stage, Wanted

BOTH = Stage(
    namespace="t",
    image="i",
    clients=(
        Peer("client-1", "a", {4: "10.0.0.1", 6: "fd00::1"}),
        Peer("client-2", "b", {4: "10.0.1.1", 6: "fd01::1"}),
    ),
    servers=(
        Peer("server-1", "a", {4: "10.0.0.2", 6: "fd00::2"}),
        Peer("server-2", "b", {4: "10.0.1.2", 6: "fd01::2"}),
    ),
    friend=Peer("friend", "a", {4: "10.0.0.3", 6: "fd00::3"}),
    services={
        objects.SERVICE: {4: "10.96.0.5", 6: "fd96::5"},
        objects.HAIRPIN: {4: "10.96.0.6", 6: "fd96::6"},
        objects.HEADLESS: {},
    },
    nodes={"a": {4: "192.0.2.1"}, "b": {4: "192.0.2.2"}},
    node_port=30000,
    api={4: "10.96.0.1"},
    api_port=443,
    has_dns=True,
    egress_target="198.51.100.1:443",
)
ONE_NODE = replace(BOTH, clients=BOTH.clients[:1], servers=BOTH.servers[:1], has_dns=False, egress_target="")


def named(name: str) -> Check:
    return next(check for check in checks.CHECKS if check.name == name)


def plan(name: str, stage: Stage = BOTH, family: int = 4) -> list[Round]:
    return named(name).plan(stage, family)


def reason(name: str, stage: Stage, family: int = 4) -> str:
    with pytest.raises(Skipped) as caught:
        plan(name, stage, family)
    return str(caught.value)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("family", [4, 6])
def test_no_check_can_pass_without_a_connection_or_a_pod(check: Check, family: int) -> None:
    try:
        rounds = check.plan(BOTH, family)
    except Skipped:
        pytest.skip("does not apply")
    assert all(part.asks or part.pods for part in rounds)


def test_nodes_and_families_are_kept_apart() -> None:
    [same] = plan("pod-to-pod-same-node", family=6)
    [other] = plan("pod-to-pod-other-node")
    assert {(ask.client, ask.target) for ask in same.asks if ask.target.startswith("tcp")} == {
        ("client-1", "tcp6://[fd00::2]:8080"),
        ("client-2", "tcp6://[fd01::2]:8080"),
    }
    assert {(ask.client, *ask.servers) for ask in other.asks} == {("client-1", "server-2"), ("client-2", "server-1")}
    assert {ask.source for ask in other.asks} == {"10.0.0.1", "10.0.1.1"}


def test_what_does_not_apply_is_skipped_with_the_reason() -> None:
    assert reason("pod-to-pod-other-node", ONE_NODE) == "one node only"
    assert "k8s-app=kube-dns" in reason("dns", ONE_NODE)
    assert "--egress-target" in reason("egress", ONE_NODE)
    assert reason("egress", BOTH, 6) == "198.51.100.1 has no IPv6 address"
    assert reason("pod-to-apiserver", BOTH, 6).endswith("no IPv6 address")
    assert reason("nodeport", BOTH, 6) == "the nodes have no IPv6 addresses"


@pytest.mark.parametrize("name", ["deny-ingress", "deny-egress", "allow-by-label"])
def test_a_denial_is_preceded_by_the_same_connections_without_a_policy(name: str) -> None:
    """Otherwise a broken network would pass as a policy that works."""
    first, second, *_ = plan(name)
    assert not first.policies
    assert {ask.wanted for ask in first.asks} == {Wanted.OK}
    denied = [ask for ask in second.asks if ask.wanted is Wanted.DENIED]
    assert denied
    assert second.policies
    assert {replace(ask, wanted=Wanted.OK) for ask in denied} <= set(first.asks)


def test_a_policy_that_allows_leaves_the_rest_closed() -> None:
    _, second = plan("allow-by-label")
    allowed = [ask for ask in second.asks if ask.wanted is Wanted.OK]
    assert {(ask.client, ask.target) for ask in allowed} == {
        ("friend", "tcp4://10.0.0.2:8080"),
        ("friend", "tcp4://10.0.1.2:8080"),
    }
    denied = {(ask.client, ask.target) for ask in second.asks if ask.wanted is Wanted.DENIED}
    assert ("friend", "tcp4://10.0.0.2:8081") in denied
    assert ("friend", "udp4://10.0.0.2:8080") in denied
    assert ("client-2", "tcp4://10.0.0.2:8080") in denied


def asked(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, peer.__file__, "ask", *words], capture_output=True, text=True, timeout=30, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def server() -> tuple[int, int]:
    """The ports of a TCP and of a UDP server, as the pods run them."""
    tcp, udp = peer._listener(socket.SOCK_STREAM, 0), peer._listener(socket.SOCK_DGRAM, 0)
    for loop, listener in ((peer._serve_tcp, tcp), (peer._serve_udp, udp)):
        threading.Thread(target=loop, args=(listener,), daemon=True).start()
    return tcp.getsockname()[1], udp.getsockname()[1]


def test_a_peer_reports_each_target_in_order(server: tuple[int, int]) -> None:
    tcp, udp = server
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nothing = closed.getsockname()[1]
        targets = [f"tcp4://127.0.0.1:{tcp}", f"udp4://127.0.0.1:{udp}", f"tcp4://127.0.0.1:{nothing}"]
        found = asked("--timeout", "1", *targets, "dns://localhost?expect=203.0.113.9")
    assert [answer["target"] for answer in found[:3]] == targets
    assert [answer["result"] for answer in found[:3]] == ["ok", "ok", "refused"]
    assert {answer["client"] for answer in found[:2]} == {"127.0.0.1"}
    assert found[0]["server"] == socket.gethostname()
    assert found[3]["result"].endswith("expected 203.0.113.9")


def test_a_wanted_result_must_come_several_times_in_a_row(server: tuple[int, int]) -> None:
    tcp, _ = server
    [good] = asked("--times", "3", f"tcp4://127.0.0.1:{tcp}")
    assert good["settled"] is None, "three tries need more than 0 seconds"
    [good] = asked("--times", "3", "--seconds", "5", f"tcp4://127.0.0.1:{tcp}")
    assert (good["tries"], good["settled"]) == (3, 0.0)
    [bad] = asked("--until", "denied", "--seconds", "0.5", f"tcp4://127.0.0.1:{tcp}")
    assert (bad["result"], bad["settled"]) == ("ok", None)


def test_the_program_is_in_the_package() -> None:
    assert Path(peer.__file__).read_text().startswith('"""The program in the pods')
