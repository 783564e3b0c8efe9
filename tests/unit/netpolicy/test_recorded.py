"""Hubble's flows -> connections: who opened one, how often, and whether policy let it through."""

from __future__ import annotations

from typing import Any

import pytest

from netpolicy.recorded import End, Record, record
from netpolicy.types import PolicyError

Obj = dict[str, Any]


def flow(source: str = "shop/web", destination: str = "shop/db", **fields: Any) -> Obj:
    def end(name: str) -> Obj:
        namespace, _, pod = name.partition("/")
        if not pod:
            return {"identity": 2, "labels": ["reserved:world"]}
        labels = [f"k8s:app={pod}", f"k8s:io.kubernetes.pod.namespace={namespace}", "k8s:empty="]
        return {"namespace": namespace, "pod_name": pod, "labels": labels, "workloads": [{"name": pod}]}

    port = fields.pop("port", 40000)
    layer = {"source_port": port, "destination_port": fields.pop("to", 5432), "flags": fields.pop("flags", {})}
    return {
        "verdict": "FORWARDED",
        "IP": {"source": fields.pop("ip", "10.0.0.1"), "destination": "10.0.0.2"},
        "l4": {fields.pop("protocol", "TCP"): layer},
        "source": end(source),
        "destination": end(destination),
        "Type": "L3_L4",
        "is_reply": False,
        "traffic_direction": "EGRESS",
        **fields,
    }


def passed(*flows: Obj) -> dict[str, int]:
    return {str(seen): times for seen, times in record(flows).passed().items()}


DROP = {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "is_reply": None, "flags": {"SYN": True}}
IN = {"traffic_direction": "INGRESS"}


def test_one_connection_gives_many_flows() -> None:
    many = [flow(), flow(**IN), {"flow": flow(**IN), "node_name": "n2", "time": "x"}, flow(is_reply=True)]
    assert passed(*many) == {"shop/web -> shop/db 5432/TCP": 1}
    assert passed(*many, flow(port=40001)) == {"shop/web -> shop/db 5432/TCP": 2}
    assert passed(flow(protocol="UDP"), flow()) == {
        "shop/web -> shop/db 5432/UDP": 1,
        "shop/web -> shop/db 5432/TCP": 1,
    }


def test_a_packet_that_policy_has_not_seen_yet_shows_nothing() -> None:
    """It comes from outside and is denied at the pod. Hubble's own flows have more such points."""
    for point in ("FROM_NETWORK", "FROM_ENDPOINT", "FROM_HOST"):
        came = flow(source="world", **IN, trace_observation_point=point)
        found = record([came, flow(source="world", **IN, **DROP)])
        assert (dict(found.passed()), found.ignored) == ({}, 1)
        assert len(found.denied()) == 1
    assert passed(flow(**IN, trace_observation_point="TO_ENDPOINT")) == {"shop/web -> shop/db 5432/TCP": 1}


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"is_reply": {"value": False}}, True),
        ({"is_reply": {"value": True}}, False),
        ({"is_reply": None}, False),
        ({"is_reply": None, "flags": {"SYN": True}}, True),
        ({"is_reply": None, "flags": {"SYN": True, "ACK": True}}, False),
        ({"is_reply": None, "protocol": "UDP"}, False),
        ({"Type": "SOCK"}, False),
        ({"Type": "L7"}, False),
        ({"verdict": "TRANSLATED"}, False),
        ({"verdict": "AUDIT"}, True),
        ({"to": 0}, False),
        ({"IP": {"source": "10.0.0.1"}}, False),
        ({"l4": {"IGMP": {}}}, False),
        ({"l4": {}}, False),
    ],
)
def test_what_shows_who_opened_the_connection(fields: Obj, counts: bool) -> None:
    found = record([flow(**fields)])
    assert (len(found.passed()), found.ignored) == ((1, 0) if counts else (0, 1))


def test_a_connection_that_the_other_end_denies_is_denied() -> None:
    """The source's policy allowed it; the destination's did not."""
    found = record([flow(), flow(**DROP, **IN)])
    assert not found.passed()
    assert [str(seen) for seen in found.denied()] == ["shop/web -> shop/db 5432/TCP"]
    # Another connection of the same pods, after the policy changed.
    found = record([flow(), flow(**DROP, **IN), flow(port=1), flow(port=1, **IN)])
    assert (sum(found.passed().values()), sum(found.denied().values())) == (1, 1)
    # An established connection that lost its rule for a moment.
    found = record([flow(**IN), flow(**DROP, **IN)])
    assert (len(found.passed()), len(found.denied())) == (1, 0)
    # Drops for other reasons say nothing about policy.
    assert not record([flow(verdict="DROPPED", drop_reason_desc="SERVICE_BACKEND_NOT_FOUND")]).denied()


def ends(obj: Obj) -> tuple[End, End]:
    (seen,) = record([obj]).passed()
    return seen.source, seen.destination


def test_ends() -> None:
    source, destination = ends(flow(destination="outside"))
    assert (source.namespace, source.pod, source.workload) == ("shop", "web", "web")
    assert source.labels == (("app", "web"), ("empty", ""))
    assert (destination.namespace, destination.host, str(destination)) == ("", False, "10.0.0.2")


@pytest.mark.parametrize(
    ("end", "node"),
    [
        ({"identity": 1}, "n1"),
        ({"labels": ["reserved:host"]}, "n1"),
        ({"identity": 6}, ""),
        ({"labels": ["reserved:remote-node"]}, ""),
        ({"identity": 7, "namespace": "kube-system", "pod_name": "apiserver"}, ""),
    ],
)
def test_nodes(end: Obj, node: str) -> None:
    source, _ = ends(flow(source=end.get("pod_name", "x")) | {"source": end, "node_name": "n1"})
    assert (source.host, source.node, source.namespace) == (True, node, "")


def test_icmp_has_no_port() -> None:
    (seen,) = record([flow(l4={"ICMPv4": {"type": 8}})]).passed()
    assert (seen.traffic.protocol, seen.traffic.port) == (None, 0)


def test_lost_and_other_lines() -> None:
    found = record([{"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "7"}}, {"node_status": {}}])
    assert (found.lost, found.ignored, found.passed()) == (7, 1, {})
    assert record([{"lost_events": {}}]).lost == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"IP": {"source": "10.0.0", "destination": "10.0.0.2"}}, "line 4: flow.IP.source: expected an IP address"),
        ({"IP": 7}, "line 4: flow.IP: expected a mapping"),
        ({"l4": {"TCP": {"destination_port": "80"}}}, "line 4: flow.l4.TCP.destination_port: expected a whole number"),
        ({"source": {"labels": ["k8s:a=b", 7], "namespace": "x"}}, "flow.source.labels[1]: expected text"),
        ({"destination": {"namespace": ["x"]}}, "flow.destination.namespace: expected text"),
    ],
)
def test_bad_fields_are_named(fields: Obj, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Record().add({"flow": flow() | fields}, "line 4")
    assert words in str(caught.value)
