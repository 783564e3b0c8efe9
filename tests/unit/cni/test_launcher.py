"""cni-bin/launcher.c: what it reads of a configuration, what it says to an agent, and what it does without one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodenet.cni import bundle, protocol
from nodenet.errors import CannotRunError

CONF = {"cniVersion": "1.0.0", "name": "net", "type": "nodenet"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: the address of a unix socket has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="nnl") as name:
        yield Path(name)


KEY = "0123456789ab"
# What is found in memory ends the program, with a report.
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def launcher(folder: Path) -> Path:
    """The launcher, and beside it a program that says that it was started instead, with its standard input."""
    target = folder / "nodenet"
    bundle._compile_launcher(KEY, target)
    alone = folder / bundle.folder_name(KEY) / "alone"
    alone.parent.mkdir()
    alone.write_text('#!/bin/sh\nprintf "alone %s " "$CNI_COMMAND"; cat\n')
    alone.chmod(0o755)
    return target


@pytest.fixture(scope="module")
def watched(launcher: Path) -> Path:
    """The launcher with checks of every access to memory."""
    target = launcher.with_name("watched")
    source = str(bundle.source_dir() / "launcher.c")
    try:
        bundle._cc([*SANITIZERS, *bundle._defines(KEY), source, "-o", str(target)])
    except CannotRunError as error:
        pytest.skip(f"the compiler's sanitizers are not installed: {error}")
    return target


def call(launcher: Path, conf: bytes | dict[str, Any], verb: str = "ADD", **env: str) -> tuple[int, bytes]:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    environment = {"CNI_COMMAND": verb, "PATH": os.environ["PATH"], **env}
    done = subprocess.run([launcher], input=stdin, env=environment, capture_output=True, check=False, timeout=20)
    assert done.stderr == b""
    return done.returncode, done.stdout


@contextlib.contextmanager
def agent(path: Path, reply: bytes) -> Iterator[list[bytes]]:
    """Answers one request with these bytes; the list has the request afterwards."""
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    data = b""
                    while not _whole(data) and (part := connection.recv(1 << 16)):
                        data += part
                    got.append(data)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield got
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            path.unlink()


def _whole(data: bytes) -> bool:
    if len(data) < 8:
        return False
    pairs = int.from_bytes(data[4:8], "big")
    start = 12 + pairs
    return len(data) >= start and len(data) == start + int.from_bytes(data[8 + pairs : start], "big")


def test_it_speaks_the_protocol(folder: Path, launcher: Path) -> None:
    conf = CONF | {"agentSocket": str(folder / "a.sock"), "prevResult": {"agentSocket": "/nowhere"}}
    stdin = json.dumps(conf).encode() + b" " * 300_000
    with agent(folder / "a.sock", protocol.pack_reply(protocol.Reply(7, b"x" * 200_000))) as got:
        assert call(launcher, stdin, CNI_ARGS="K=ü", OTHER="no") == (7, b"x" * 200_000)
    wanted = {"CNI_COMMAND": "ADD", "CNI_ARGS": "K=ü"}
    start = 8 + int.from_bytes(got[0][4:8], "big")
    assert got[0][:4] == protocol.REQUEST_MAGIC
    assert protocol.unpack_environment(got[0][8:start]) == wanted
    assert got[0][start + 4 :] == stdin
    assert got[0] == protocol.pack_request(protocol.unpack_environment(got[0][8:start]), stdin)


@pytest.mark.parametrize("cut", [0, 3, 11, 14])
def test_half_an_answer_is_none(folder: Path, launcher: Path, cut: int) -> None:
    reply = protocol.pack_reply(protocol.Reply(0, b"done"))
    with agent(folder / "b.sock", reply[:cut]):
        status, out = call(launcher, CONF | {"agentSocket": str(folder / "b.sock")})
    assert status == 1
    assert json.loads(out) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": f"the agent ended before its answer was complete ({cut} bytes)",
    }


def test_without_an_agent_the_other_program_gets_the_same_input(folder: Path, launcher: Path) -> None:
    stdin = json.dumps(CONF | {"agentSocket": str(folder / "nobody")}).encode() * 1
    assert call(launcher, stdin, "CHECK") == (0, b"alone CHECK " + stdin)
    dead = folder / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    assert call(launcher, CONF | {"agentSocket": str(dead)})[1].startswith(b"alone ADD ")


def test_require_agent_and_a_missing_program(folder: Path, launcher: Path, tmp_path: Path) -> None:
    conf = CONF | {"agentSocket": str(folder / "nobody"), "requireAgent": True}
    status, out = call(launcher, conf)
    assert (status, json.loads(out)["code"]) == (1, 11)
    assert "requireAgent" in json.loads(out)["msg"]
    assert call(launcher, conf, "DEL")[1].startswith(b"alone DEL ")
    assert call(launcher, conf | {"requireAgent": False})[1].startswith(b"alone ADD ")
    lonely = tmp_path / "nodenet"
    lonely.write_bytes(launcher.read_bytes())
    lonely.chmod(0o755)
    status, out = call(lonely, conf | {"requireAgent": False, "cniVersion": '0.4.0"'})
    assert (status, json.loads(out)["code"], json.loads(out)["cniVersion"]) == (1, 11, "1.1.0")


def test_a_socket_that_is_none_and_one_that_cannot_be(folder: Path, launcher: Path) -> None:
    status, out = call(launcher, CONF | {"agentSocket": "/" + "x" * 108})
    assert (status, json.loads(out)["code"]) == (1, 7)
    status, out = call(launcher, CONF | {"agentSocket": "/with\0nul"})
    assert (status, json.loads(out)["code"]) == (1, 7)
    status, out = call(launcher, CONF | {"agentSocket": "/etc/hostname/x"})
    assert (status, json.loads(out)["code"]) == (1, 5)
    assert call(launcher, CONF | {"agentSocket": "relative"})[1].startswith(b"alone ")
    assert call(launcher, CONF | {"agentSocket": ""})[1].startswith(b"alone ")


def test_input_that_is_too_long(launcher: Path) -> None:
    status, out = call(launcher, b" " * (protocol.MAX_STDIN + 1))
    assert (status, json.loads(out)["code"]) == (1, 6)


keys = st.sampled_from(["agentSocket", "name", "x", 'a"b', "agentSocket\\", "é", "requireAgent", "\0", "\ud800"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["{", '"', "agentSocket"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(
    before=st.dictionaries(keys.filter(lambda key: key != "agentSocket"), values, max_size=3),
    after=st.dictionaries(keys.filter(lambda key: key != "agentSocket"), values, max_size=3),
    plain=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_socket_is_found_wherever_it_is(
    folder: Path, launcher: Path, before: dict[str, Any], after: dict[str, Any], plain: bool, indent: int | None
) -> None:
    """In any JSON text that Python writes, between whatever other keys and values."""
    path = folder / "sö\U0001f600.sock"
    conf = before | {"agentSocket": str(path)} | {key: value for key, value in after.items() if key not in before}
    text = json.dumps(conf, ensure_ascii=plain, indent=indent).encode(errors="surrogatepass")
    with agent(path, protocol.pack_reply(protocol.Reply(0, b"agent"))):
        assert call(launcher, text) == (0, b"agent")


@given(text=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0agentSock /', max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_input_ends_in_the_other_program_or_in_an_error(launcher: Path, text: bytes) -> None:
    status, out = call(launcher, text)
    assert (status == 0 and out == b"alone ADD " + text) or json.loads(out)["code"] in (5, 7, 11)


WHOLE = json.dumps(
    CONF
    | {
        "agentSocket": "/nowhere/\U0001f600.sock",
        "requireAgent": False,
        "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]]},
    }
    | {"prevResult": {"ips": [{"address": 'a\\"b'}], "n": -1.5e3}}
).encode()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_configuration_ends_it_soon_and_touches_no_foreign_memory(watched: Path, data: st.DataObject) -> None:
    """Cut off, with bytes put in (NUL above all), taken out, doubled, or other ones."""
    text = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from([b"\0", b"\\", b'"', b"\\u", b"\\ud83d", b"\\u0000", b"{", b"[", b"]", b"}", b",", b":"])
            | st.binary(min_size=1, max_size=3)
        )
        change = data.draw(st.sampled_from(["insert", "replace", "remove", "cut", "double"]))
        if change == "insert":
            text[at:at] = piece
        elif change == "replace":
            text[at : at + len(piece)] = piece
        elif change == "remove":
            del text[at : at + 3]
        elif change == "cut":
            del text[at:]
        else:
            text[at:at] = text[at : at + 20]
    status, out = call(watched, bytes(text))
    assert (status == 0 and out == b"alone ADD " + bytes(text)) or json.loads(out)["code"] in (5, 7, 11)


@pytest.mark.parametrize(
    "text",
    [
        b'{"ipam":{\0}}',
        b'{"ipam":[\0',
        b'{"a":\0}',
        b'\0{"a":1}',
        b'{"a"\0:1}',
        b'{"a":1\0}',
        b'{"cniVersion":"1.0.0\0\0\0","agentSocket":"/x"}',
        b'{"cniVersion":"' + b"1" * 300 + b'"}',
        b'{"' + b"k" * 300 + b'":1}',
        b'{"agentSocket":"' + b"\\" * 3,
        b'{"agentSocket":"/\\ud83d\\ude',
        b'{"requireAgent":tru',
        b"[" * (protocol.MAX_STDIN - 1),
        b'{"a":' + b"[" * (protocol.MAX_STDIN - 10),
        b'{"a":' + b"\0" * (protocol.MAX_STDIN - 10),
        b'{"a":"' + b"\\" * (protocol.MAX_STDIN - 10),
        b'{"a":' + b"]" * 1000,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_nothing_makes_it_turn_for_ever(watched: Path, text: bytes) -> None:
    status, out = call(watched, text)
    assert (status == 0 and out == b"alone ADD " + text) or json.loads(out)["code"] in (5, 7, 11)


def test_descriptors_that_do_not_block(folder: Path, launcher: Path) -> None:
    """A runtime's pipes: the configuration comes late, and the answer is more than the pipe holds."""
    answer = b"x" * 300_000
    stdin, feed = os.pipe()
    drain, stdout = os.pipe()
    for end in (stdin, stdout):
        os.set_blocking(end, False)
    with agent(folder / "n.sock", protocol.pack_reply(protocol.Reply(0, answer))):
        conf = json.dumps(CONF | {"agentSocket": str(folder / "n.sock")}).encode()
        with subprocess.Popen([launcher], stdin=stdin, stdout=stdout, env={"CNI_COMMAND": "ADD"}) as process:
            os.close(stdin)
            os.close(stdout)
            waits = Path(f"/proc/{process.pid}/wchan")
            while process.poll() is None and "poll" not in waits.read_text():
                pass
            os.write(feed, conf[:20])
            os.write(feed, conf[20:])
            os.close(feed)
            with os.fdopen(drain, "rb") as got:
                assert got.read() == answer
        assert process.returncode == 0


def test_a_person_who_starts_it_is_told_what_it_is(launcher: Path) -> None:
    """And does not wait for the end of a configuration that nobody writes."""
    terminal, stdin = os.openpty()
    try:
        done = subprocess.run([launcher], stdin=stdin, env={}, capture_output=True, check=False, timeout=5)
    finally:
        os.close(stdin)
        os.close(terminal)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 4)
    assert "a container runtime starts this" in json.loads(done.stdout)["msg"]
