"""Lines exactly as the hubble CLI prints them, and what drops say on top."""

from __future__ import annotations

import json

import pytest

from nodenet.cli.flow_words import TimeFormat, reason_text
from nodenet.cli.format_flow import Options, Output, Printer
from nodenet.rpc.pb.flow import flow_pb2
from nodenet.rpc.pb.observer import observer_pb2

WEB = {"ID": 1, "identity": 300, "namespace": "shop", "pod_name": "web-1"}
DB = {"ID": 2, "identity": 301, "namespace": "shop", "pod_name": "db-0"}
TCP = {"TCP": {"source_port": 40000, "destination_port": 5432, "flags": {"SYN": True}}}


def answer(**fields):
    flow = {
        "time": {"seconds": 1_700_000_000, "nanos": 123_456_789},
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": TCP,
        "source": WEB,
        "destination": DB,
        "Type": "L3_L4",
        "node_name": "node-1",
        "event_type": {"type": 4, "sub_type": 0},
        "traffic_direction": "INGRESS",
        "is_reply": {"value": False},
        "Summary": "TCP Flags: SYN",
    } | fields
    found = observer_pb2.GetFlowsResponse(flow=flow_pb2.Flow(**{k: v for k, v in flow.items() if v is not None}))
    found.node_name = "node-1"
    return found


def lines(*answers, **options):
    printer = Printer(Options(**options))
    return [line for one in answers for line in printer.lines(one)] + list(printer.close())


POLICIES = [{"name": "let-web", "namespace": "shop"}, {"name": "deny-all", "namespace": "shop"}]
DENIED = {
    "verdict": "DROPPED",
    "event_type": {"type": 1, "sub_type": 133},
    "drop_reason_desc": "POLICY_DENIED",
    "is_reply": None,
    "ingress_denied_by": POLICIES,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {},
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) -> shop/db-0:5432 (ID:301) to-endpoint FORWARDED "
            "(TCP Flags: SYN)",
        ),
        (
            {"is_reply": {"value": True}, "event_type": {"type": 4, "sub_type": 5}, "Summary": "TCP Flags: SYN, ACK"},
            "Nov 14 22:13:20.123: shop/db-0:5432 (ID:301) <- shop/web-1:40000 (ID:300) from-endpoint FORWARDED "
            "(TCP Flags: SYN, ACK)",
        ),
        (
            {"event_type": {"type": 5}, "policy_match_type": 2},
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) -> shop/db-0:5432 (ID:301) "
            "policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)",
        ),
        (
            {"event_type": {"type": 5}, "verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED"},
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) -> shop/db-0:5432 (ID:301) "
            "policy-verdict:none INGRESS DENIED (TCP Flags: SYN) "
            "(POLICY_DENIED: the pod is isolated and no rule allows this)",
        ),
        (
            DENIED,
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) <> shop/db-0:5432 (ID:301) Policy denied DROPPED "
            "(TCP Flags: SYN) (POLICY_DENIED: ingress isolated by shop/let-web, shop/deny-all; "
            "no rule allows this)",
        ),
        (
            DENIED | {"ingress_denied_by": [], "egress_denied_by": POLICIES[:1], "destination": {"identity": 2}},
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) <> 10.0.0.2:5432 (world) Policy denied DROPPED "
            "(TCP Flags: SYN) (POLICY_DENIED: egress isolated by shop/let-web; "
            "no rule allows this)",
        ),
        (
            {
                "verdict": "DROPPED", "event_type": {"type": 1, "sub_type": 158}, "is_reply": None, "Summary": "UDP",
                "drop_reason_desc": "SERVICE_BACKEND_NOT_FOUND", "destination": {"identity": 2},
                "destination_service": {"name": "database", "namespace": "shop"},
                "l4": {"UDP": {"destination_port": 53}},
            },
            "Nov 14 22:13:20.123: shop/web-1 (ID:300) <> shop/database:53 (world) Service backend not found DROPPED "
            "(UDP) (SERVICE_BACKEND_NOT_FOUND: the Service has no ready backend)",
        ),
        (
            {"event_type": {"type": 7, "sub_type": 2}, "sock_xlate_point": 2, "verdict": "TRANSLATED",
             "is_reply": None, "Summary": "TCP"},
            "Nov 14 22:13:20.123: shop/web-1:40000 (ID:300) <> shop/db-0:5432 (ID:301) post-xlate-fwd TRANSLATED (TCP)",
        ),
        (
            {"source": {"identity": 1}, "IP": {"source": "fd00::1", "destination": "fd00::2"}, "destination": {}},
            "Nov 14 22:13:20.123: [fd00::1]:40000 (host) -> [fd00::2]:5432 (unknown) to-endpoint FORWARDED "
            "(TCP Flags: SYN)",
        ),
        (
            {"IP": None, "l4": None, "ethernet": {"source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"},
             "Summary": "not IP", "time": None},
            "N/A: 02:00:00:00:00:01 (ID:300) -> 02:00:00:00:00:02 (ID:301) to-endpoint FORWARDED (not IP)",
        ),
    ],
)  # fmt: skip
def test_compact(fields, expected):
    assert lines(answer(**fields)) == [expected]


def test_a_policy_verdict_says_by_which_rule_when_asked():
    rule = {"name": "let-web", "namespace": "shop", "labels": ["nodenet:rule=ingress[0]"]}
    allowed = answer(event_type={"type": 5}, policy_match_type=4, ingress_allowed_by=[rule])
    assert lines(allowed)[0].endswith("policy-verdict:all INGRESS ALLOWED (TCP Flags: SYN)")
    assert lines(allowed, explain=True)[0].endswith("(TCP Flags: SYN) (allowed by shop/let-web ingress[0])")


def test_the_service_that_was_called_is_named_beside_the_pod_behind_it():
    service = {"name": "database", "namespace": "shop"}
    asked, answered = answer(destination_service=service), answer(source_service=service, is_reply={"value": True})
    assert lines(asked)[0].endswith("FORWARDED (TCP Flags: SYN) (via Service shop/database)")
    assert lines(answered)[0].endswith("FORWARDED (TCP Flags: SYN) (via Service shop/database)")
    assert lines(asked, translate=False)[0].endswith("FORWARDED (TCP Flags: SYN)")
    assert lines(asked, output=Output.DICT)[-1] == "    SERVICE: shop/database"
    assert lines(asked, output=Output.TABLE)[-1].endswith("TCP Flags: SYN (via Service shop/database)")
    assert "via" not in lines(answer(destination_service=service, destination={"identity": 2}))[0]


def test_node_names_numbers_and_colors():
    assert lines(answer(), node_name=True)[0].startswith("Nov 14 22:13:20.123 [node-1]: shop/web-1:40000")
    assert " 10.0.0.1:40000 (ID:300) -> 10.0.0.2:5432 (ID:301) " in lines(answer(), translate=False)[0]
    assert " \x1b[31mDROPPED\x1b[0m (" in lines(answer(**DENIED), color=True)[0]
    assert " \x1b[32mFORWARDED\x1b[0m (" in lines(answer(), color=True)[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StampMilli", "Nov 14 22:13:20.123"),
        ("RFC3339", "2023-11-14T22:13:20Z"),
        ("RFC3339Milli", "2023-11-14T22:13:20.123Z"),
        ("RFC3339Micro", "2023-11-14T22:13:20.123456Z"),
        ("RFC3339Nano", "2023-11-14T22:13:20.123456789Z"),
        ("RFC1123Z", "Tue, 14 Nov 2023 22:13:20 +0000"),
    ],
)
def test_times(name, expected):
    assert lines(answer(), time_format=TimeFormat(name))[0].startswith(expected + ": ")


def test_dict():
    assert lines(answer(), answer(**DENIED), output=Output.DICT, node_name=True) == [
        "  TIMESTAMP: Nov 14 22:13:20.123",
        "       NODE: node-1",
        "     SOURCE: shop/web-1:40000",
        "DESTINATION: shop/db-0:5432",
        "       TYPE: to-endpoint",
        "    VERDICT: FORWARDED",
        "    SUMMARY: TCP Flags: SYN",
        "------------",
        "  TIMESTAMP: Nov 14 22:13:20.123",
        "       NODE: node-1",
        "     SOURCE: shop/web-1:40000",
        "DESTINATION: shop/db-0:5432",
        "       TYPE: Policy denied",
        "    VERDICT: DROPPED",
        "    SUMMARY: TCP Flags: SYN",
        "        WHY: POLICY_DENIED: ingress isolated by shop/let-web, shop/deny-all; no rule allows this",
    ]


def test_table():
    head, first, second = lines(answer(), answer(event_type={"type": 4, "sub_type": 3}), output=Output.TABLE)
    assert head == (
        "TIMESTAMP             SOURCE             DESTINATION      TYPE          VERDICT     SUMMARY"
    )  # fmt: skip
    assert first == (
        "Nov 14 22:13:20.123   shop/web-1:40000   shop/db-0:5432   to-endpoint   FORWARDED   TCP Flags: SYN"
    )
    assert "   to-stack      " in second
    assert lines(output=Output.TABLE) == []


@pytest.mark.parametrize("output", [Output.JSON, Output.JSONPB])
def test_json_has_the_protocols_names(output):
    (line,) = lines(answer(**DENIED), output=output)
    data = json.loads(line)
    assert data["node_name"] == "node-1"
    assert data["flow"]["verdict"] == "DROPPED"
    assert data["flow"]["drop_reason_desc"] == "POLICY_DENIED"
    assert data["flow"]["l4"]["TCP"]["destination_port"] == 5432
    assert data["flow"]["source"] == WEB
    assert data["flow"]["time"] == "2023-11-14T22:13:20.123456789Z"


def test_lost_flows_are_shown():
    lost = observer_pb2.GetFlowsResponse(lost_events={"source": 3, "num_events_lost": 7}, node_name="node-1")
    assert lines(lost) == ["EVENTS LOST: HUBBLE_RING_BUFFER CPU(0) 7"]
    assert lines(lost, node_name=True) == ["EVENTS LOST: [node-1] HUBBLE_RING_BUFFER CPU(0) 7"]
    assert "    SUMMARY: CPU(0) - 7" in lines(lost, output=Output.DICT)
    assert "EVENTS LOST" in lines(lost, output=Output.TABLE)[1]
    assert json.loads(lines(lost, output=Output.JSON)[0])["lost_events"]["num_events_lost"] == "7"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (132, "Invalid source ip"),
        (133, "Policy denied"),
        (158, "Service backend not found"),
        (139, "Unsupported L3 protocol"),
        (155, "CT: Map insertion failed"),
        (180, "Proxy redirection not supported for protocol"),
        (9999, "9999"),
    ],
)
def test_reasons_in_words(number, text):
    assert reason_text(number) == text


def test_numbers_that_are_not_known_are_shown_as_numbers():
    line = lines(answer(event_type={"type": 4, "sub_type": 77}))[0]
    assert " 77 FORWARDED " in line
    assert " UNKNOWN FORWARDED " in lines(answer(event_type={"type": 200}))[0]
