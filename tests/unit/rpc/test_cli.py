"""The command line as a process of its own, talking to a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

from nodenet.cli import streams
from nodenet.cli.target import Target, targets
from nodenet.errors import BadInputError, CannotRunError
from nodenet.rpc.pb.observer import observer_pb2

COMMAND = (sys.executable, "-c", "from nodenet.cli.main import main; main()")


async def start(world, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "HUBBLE_SERVER"} | {"NODENET_SOCKET": str(world.socket)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=pipe, stderr=pipe, env=environment)


async def run(world, *arguments):
    process = await start(world, *arguments)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_drop_shows_pods_reason_and_policies(world, dropped):
    world.see()
    world.see(**dropped())
    code, out, err = await run(world, "observe", "--verdict", "DROPPED")
    assert (code, err) == (0, "")
    verdict, drop = out.splitlines()
    start = "Nov 14 22:13:22.000: shop/web-1:40000 (ID:300) <> shop/db-0:5432 (ID:301)"
    why = "(TCP Flags: SYN) (POLICY_DENIED: ingress isolated by shop/let-web, shop/deny-all; no rule allows this)"
    assert verdict == f"{start} policy-verdict:none INGRESS DENIED {why}"
    assert drop == f"{start} Policy denied DROPPED {why}"
    code, out, _ = await run(world, "observe", "--type", "policy-verdict", "--verdict", "DROPPED")
    assert (code, out) == (0, f"{verdict}\n")


async def test_not_and_json(world, dropped):
    world.see()
    world.see(**dropped())
    world.see(dport=80)
    code, out, _ = await run(world, "observe", "--not", "--verdict", "DROPPED", "-o", "json")
    assert code == 0
    flows = [json.loads(line)["flow"] for line in out.splitlines()]
    assert [flow["l4"]["TCP"]["destination_port"] for flow in flows] == [5432, 80]
    assert flows[0]["destination"]["labels"] == ["k8s:app=db"]


async def test_follow_ends_quietly_with_ctrl_c(world):
    world.see()
    process = await start(world, "observe", "-f", "--last", "1", "-o", "compact")
    assert b"policy-verdict" in await process.stdout.readline()
    world.see(dport=81)
    assert b":81 " in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["observe", "--from-ip", "nonsense"], 2, "nodenet: --from-ip 'nonsense': expected an address or a CIDR"),
        (["observe", "--verdict", "NO"], 2, "nodenet: --verdict 'NO': expected one of"),
        (["observe", "--first", "1", "--last", "1"], 2, "nodenet: --first and --last cannot be combined"),
        (["observe", "-f", "-o", "table"], 2, "--output table and --follow cannot be combined"),
        (["observe", "--since", "yesterday"], 2, "expected a duration such as 5m"),
        (["observe", "--not"], 2, "--not: nothing follows"),
        (["observe", "--socket", "/nonexistent.sock"], 3, "nodenet: no agent: there is no socket /nonexistent.sock"),
        (["status", "--server", "127.0.0.1:1"], 3, "nodenet: no agent answers at 127.0.0.1:1"),
        (["ct", "list", "--lab", "no-such-lab"], 2, "nodenet: lab no-such-lab: there is no such lab"),
        (["observe", "--lab", "a", "--socket", "b"], 2, "--socket and --lab cannot be combined"),
    ],
)
async def test_errors_are_one_sentence_with_the_right_code(world, arguments, code, message):
    found, out, err = await run(world, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


async def test_status_and_lists(world):
    world.provider.tables["map"] = [{"name": "nn_ct", "id": 3, "entries": 5, "size": 10, "fill": 0.5}]
    code, out, _ = await run(world, "status")
    assert (code, out) == (0, "node-1: healthy\n  address: 10.0.0.1\n")
    code, out, _ = await run(world, "map", "list")
    assert out.splitlines() == [
        "NAME   TYPE  ID  ENTRIES  SIZE   FILL  KEY  VALUE  WRITTEN BY  SIZE KEY",
        "nn_ct  -      3        5    10  50.0%  -    -      -           -",
    ]
    code, out, _ = await run(world, "map", "list", "-o", "json")
    assert json.loads(out) == world.provider.tables["map"]
    world.provider.well = False
    code, out, _ = await run(world, "status", "-o", "json")
    assert (code, json.loads(out)["healthy"]) == (1, False)


async def test_monitor_prints_numbers_and_words(world):
    world.see(type=1, reason=-133)
    world.see(type=4)
    code, out, _ = await run(world, "monitor", "--no-follow", "-t", "drop")
    assert code == 0
    (line,) = out.splitlines()
    for part in (" drop ", " tcp ", " ingress ct new ", "identity 300->301", "dropped: Policy denied (133)"):
        assert part in line
    code, out, _ = await run(world, "monitor", "--no-follow")
    assert [line.split()[1] for line in out.splitlines()] == ["drop", "trace"]
    code, out, _ = await run(world, "monitor", "--no-follow", "-t", "drop", "-o", "json")
    assert json.loads(out)["type"] == 1
    assert json.loads(out)["daddr"] == "10.0.0.2"


def request(**fields):
    return observer_pb2.GetFlowsRequest(**fields)


def ports(answers):
    return [answer.flow.l4.TCP.destination_port for answer in answers]


@pytest.fixture
def where(lab):
    return [Target(str(one.socket), one.feed.origin.node_name) for one in lab]


async def test_a_labs_flows_are_merged_by_time(lab, where):
    first, second = lab
    for moment, world in enumerate((first, second, second, first), 1):
        world.see(time=moment * 10**9, dport=moment)
    complaints: list[str] = []
    assert ports(await streams.collect(where, request(), complaints.append)) == [1, 2, 3, 4]
    assert ports(await streams.collect(where, request(number=3), complaints.append)) == [2, 3, 4]
    assert ports(await streams.collect(where, request(number=3, first=True), complaints.append)) == [1, 2, 3]
    assert complaints == []


async def test_a_node_that_is_down_does_not_hide_the_others(lab, where):
    lab[0].see()
    await lab[1].server.stop()
    complaints: list[str] = []
    assert len(await streams.collect(where, request(), complaints.append)) == 1
    assert complaints[0].startswith("node2: no agent")
    await lab[0].server.stop()
    with pytest.raises(CannotRunError, match="no agent"):
        await streams.collect(where, request(), complaints.append)


async def test_a_bad_filter_is_told_once(lab, where):
    bad = request(whitelist=[{"source_ip": ["x"]}])
    with pytest.raises(BadInputError, match="source_ip"):
        await streams.collect(where, bad, pytest.fail)
    with pytest.raises(BadInputError, match="source_ip"):
        async for _ in streams.follow(where, request(follow=True, whitelist=bad.whitelist), pytest.fail):
            pass


async def test_following_a_lab_puts_near_flows_in_order(lab, where):
    for moment, world in ((2, lab[1]), (1, lab[0])):
        world.see(time=moment * 10**9, dport=moment)
    complaints: list[str] = []
    stream = streams.follow(where, request(follow=True, number=10), complaints.append)
    assert ports([await anext(stream), await anext(stream)]) == [1, 2]
    lab[1].see(time=3 * 10**9, dport=3)
    assert ports([await anext(stream)]) == [3]
    await lab[0].server.stop()
    lab[1].see(time=4 * 10**9, dport=4)
    assert ports([await anext(stream)]) == [4]
    await stream.aclose()


def test_targets(tmp_path, lab):
    labs = {"root": tmp_path}
    assert targets({}, {}) == [Target("/run/nodenet/agent.sock")]
    assert targets({}, {"NODENET_SOCKET": "/a", "HUBBLE_SERVER": "b:1"}) == [Target("/a")]
    assert targets({}, {"HUBBLE_SERVER": "b:1"}) == [Target("b:1")]
    assert targets({"socket": "/c"}, {"NODENET_SOCKET": "/a"}) == [Target("/c")]
    assert [one.node for one in targets({"lab": "blue"}, {"NODENET_SOCKET": "/a"}, **labs)] == ["node1", "node2"]
    (one,) = targets({"lab": "blue", "node": "node2"}, {}, **labs)
    assert one.address == str(tmp_path / "blue" / "node2" / "agent.sock")
    with pytest.raises(BadInputError, match=r"lab blue has no node x \(its nodes: node1, node2\)"):
        targets({"lab": "blue", "node": "x"}, {}, **labs)
    with pytest.raises(BadInputError, match="lab green: there is no such lab"):
        targets({"lab": "green"}, {}, **labs)
    with pytest.raises(BadInputError, match="--node names a node of a lab"):
        targets({"node": "x", "socket": "/a"}, {}, **labs)
