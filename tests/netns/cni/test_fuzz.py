"""Standard input and environment of any shape: always the specification's JSON, never a traceback, never a leak."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodenet.cni.conf import SUPPORTED_VERSIONS
from nodenet.cni.keys import BRIDGE_KEYS, IPAM_KEYS
from nodenet.cni.request import VERBS
from nodenet.link import netns
from tests.netns.cni.conftest import World

pytestmark = pytest.mark.kernel
EXAMPLES = int(os.environ.get("NODENET_FUZZ", "150"))
RELAXED = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_word = st.text("abz019./:-\0é\ud800 ", max_size=8) | st.sampled_from(
    ["10.77.0.0/24", "10.77.0.9", "fd77::/64", "fd77::9", "eth0", "host-local", "nodenet", "02:00:00:00:00:07", "1.0.0"]
)
_value = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | _word | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_word, inner, max_size=3),
    max_leaves=6,
)
_key = st.sampled_from(
    [*BRIDGE_KEYS, "name", "ipam", "args", "runtimeConfig", "cniVersion", "prevResult", "cni.dev/valid-attachments"]
)
_ipam_key = st.sampled_from([*IPAM_KEYS, "type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges"])
# Those that say where things are written stay as the test has them.
_KEPT = {"agentSocket", "dataDir", "bridge"}
_changes = st.dictionaries(_key.filter(lambda key: key not in _KEPT), _value, max_size=3)
_ipam_changes = st.dictionaries(_ipam_key.filter(lambda key: key not in _KEPT), _value, max_size=2)
_verb = st.sampled_from(VERBS)
_variables = st.dictionaries(
    st.sampled_from(["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"]),
    st.none() | st.text(st.characters(blacklist_characters="\0", max_codepoint=0x2FF), max_size=20) | _word,
    max_size=2,
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Iterator[tuple[World, str]]:
    """One node and one pod for all examples."""
    world = World(netns.create(f"nntest-{uuid.uuid4().hex[:8]}"), tmp_path_factory.mktemp("fuzz"), program)
    pod = world.pod()
    try:
        yield world, pod
    finally:
        for path in (world.node, *world.pods):
            netns.delete(path)


def changed(world: World, changes: dict[str, Any], ipam: dict[str, Any]) -> bytes:
    conf = json.loads(world.conf())
    conf |= copy.deepcopy(changes)
    if isinstance(conf.get("ipam"), dict) and "ipam" not in changes:
        conf["ipam"] |= ipam
    return json.dumps(conf).encode()


def conforming(verb: str, status: int, stdout: bytes) -> None:
    """What SPEC.md asks of a plugin's output."""
    if status == 0:
        if verb in ("ADD", "VERSION"):
            assert json.loads(stdout)["cniVersion"] in SUPPORTED_VERSIONS
        else:
            assert stdout == b""
        return
    body = json.loads(stdout)
    assert {"cniVersion", "code", "msg"} <= set(body) <= {"cniVersion", "code", "msg", "details"}
    assert body["cniVersion"] in SUPPORTED_VERSIONS
    assert body["code"] in (*range(1, 8), 11, 50, 51, *range(101, 107))
    assert body["msg"]


def clean(world: World, pod: str, stdin: bytes) -> None:
    """DEL with whatever configuration it was, then the plain one: nothing may be left."""
    for conf in (stdin, world.conf()):
        world.call("DEL", "c1", pod, conf)
    gc = world.conf(**{"cni.dev/valid-attachments": None})
    assert world.call("GC", "", "", gc).status == 0
    left = [name for name in world.left() if not name.startswith(("nn0.", "seen"))]
    assert left == [], left
    assert world.interfaces(pod) == ["lo"]


@RELAXED
@given(verb=_verb, changes=_changes, ipam=_ipam_changes)
def test_any_configuration(node: tuple[World, str], verb: str, changes: dict[str, Any], ipam: dict[str, Any]) -> None:
    world, pod = node
    stdin = changed(world, changes, ipam)
    reply = world.call(verb, "c1", pod, stdin)
    conforming(verb, reply.status, reply.stdout)
    if verb == "ADD" and reply.status == 0:
        name = json.loads(stdin)["name"]
        assert world.call("DEL", "c1", pod, stdin).status == 0, name
    clean(world, pod, stdin)


@RELAXED
@given(verb=_verb, variables=_variables, stdin=st.binary(max_size=40) | st.just(b"null") | st.just(b'{"name":{}}'))
def test_any_environment_and_any_bytes(
    node: tuple[World, str], verb: str, variables: dict[str, str | None], stdin: bytes
) -> None:
    from nodenet.cni import alone

    world, pod = node
    for given_stdin in (stdin, world.conf()):
        environment = world.env(verb, "c1", pod)
        for key, value in variables.items():
            if value is None:
                environment.pop(key)
            else:
                environment[key] = value
        reply = netns.call(world.node, alone.run, environment, given_stdin)
        conforming(environment.get("CNI_COMMAND", ""), reply.status, reply.stdout)
        used = (environment.get("CNI_CONTAINERID") or "c1", environment.get("CNI_IFNAME") or "eth0")
        netns.call(
            world.node,
            alone.run,
            world.env("DEL", used[0], pod) | {"CNI_IFNAME": used[1]},
            world.conf(),
        )
    clean(world, pod, world.conf())


@settings(RELAXED, max_examples=max(20, EXAMPLES // 8))
@given(verb=_verb, changes=_changes, ipam=_ipam_changes, raw=st.none() | st.binary(max_size=60))
def test_the_executable(
    node: tuple[World, str], verb: str, changes: dict[str, Any], ipam: dict[str, Any], raw: bytes | None
) -> None:
    world, pod = node
    stdin = changed(world, changes, ipam) if raw is None else raw
    done: subprocess.CompletedProcess[bytes] = world.execute(verb, "c1", pod, stdin)
    # Bytes that name no agentSocket go to the machine's own agent, if there is one: then that one answers.
    assert b"Traceback" not in done.stderr
    conforming(verb, done.returncode, done.stdout)
    clean(world, pod, stdin)
