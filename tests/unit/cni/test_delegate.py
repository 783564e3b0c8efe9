"""Another plugin's addresses: how it is found and called, what its answers become, and what is left of it (nothing)."""

from __future__ import annotations

import json
import os
import threading
import time
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodenet.cni import child
from nodenet.cni.delegate import Delegate
from nodenet.cni.errors import CniError
from nodenet.cni.request import parse

STATIC = Path("/usr/lib/cni/static")
ENVIRONMENT = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
}


def scripted(folder: Path, script: str, kind: str = "ipam", stdin: bytes = b"{}") -> Delegate:
    """A delegate that is a shell script."""
    path = folder / kind
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    request = parse(ENVIRONMENT | {"CNI_COMMAND": "ADD", "CNI_PATH": f"/nowhere:{folder}"}, stdin)
    return Delegate.of(kind, request)


def answering(folder: Path, **body: Any) -> Delegate:
    (folder / "answer").write_text(json.dumps(body))
    return scripted(folder, f"cat {folder}/answer")


def static(**keys: Any) -> Delegate:
    if not STATIC.exists():
        pytest.skip("Debian's static IPAM plugin is not installed (containernetworking-plugins)")
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}, {"address": "fd01::3/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}],
        "dns": {"nameservers": ["10.1.2.53"], "search": ["shop"]},
    }
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "nodenet", "ipam": ipam} | keys
    environment = ENVIRONMENT | {"CNI_COMMAND": "ADD", "CNI_PATH": f"/nowhere:{STATIC.parent}"}
    return Delegate.of("static", parse(environment, json.dumps(conf).encode()))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_debians_static(version: str) -> None:
    answer = static(cniVersion=version).add()
    assert [(str(entry.address), entry.gateway) for entry in answer.addresses] == [
        ("10.1.2.3/24", ip_address("10.1.2.1")),
        ("fd01::3/64", None),
    ]
    assert [(str(route.network), route.gateway) for route in answer.routes] == [
        ("0.0.0.0/0", None),
        ("10.9.0.0/16", ip_address("10.1.2.9")),
    ]
    assert answer.dns == {"nameservers": ["10.1.2.53"], "search": ["shop"]}
    static(cniVersion=version).delete()


def test_debians_static_says_what_is_wrong_itself() -> None:
    with pytest.raises(CniError, match="incompatible CNI versions") as told:
        static(cniVersion="1.1.0").add()
    assert told.value.code == 1
    assert "1.1.0" in told.value.details
    with pytest.raises(CniError, match="prevResult") as told:
        static().check()
    assert told.value.code == 999
    ips = [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}, {"address": "fd01::3/64"}]
    static(prevResult={"cniVersion": "1.0.0", "interfaces": [], "ips": ips}).check()


def test_it_is_called_as_we_were(tmp_path: Path) -> None:
    one = scripted(tmp_path, f"env | sort > {tmp_path}/env; cat > {tmp_path}/stdin; echo told >&2", stdin=b'{"a": 1}')
    one.delete()
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    wanted = ENVIRONMENT | {"CNI_COMMAND": "DEL", "CNI_PATH": f"/nowhere:{tmp_path}"}
    assert {name: value for name, value in seen.items() if name.startswith("CNI_")} == wanted
    assert seen["PATH"] == os.environ["PATH"]
    assert (tmp_path / "stdin").read_bytes() == b'{"a": 1}'


def test_large_input_and_output(tmp_path: Path) -> None:
    """More than a pipe holds, in both directions, and a child that never reads."""
    big = json.dumps({"name": "x" * 300_000}).encode()
    one = scripted(tmp_path, "cat", stdin=big)
    assert child.run(one.executable(), {}, big, 10) == (0, big)
    assert child.run(scripted(tmp_path, "true").executable(), {}, big, 10) == (0, b"")


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for kind in ("none", "folder"):
        with pytest.raises(CniError, match=rf'ipam.type: "{kind}" is neither .*CNI_PATH \(/a:{tmp_path}\)') as told:
            Delegate(kind, f"/a:{tmp_path}", b"{}").add()
        assert told.value.code == 2
    with pytest.raises(CniError, match="CNI_PATH: required") as told:
        Delegate("none", "", b"{}").add()
    assert told.value.code == 4
    with pytest.raises(CniError, match="neither") as told:
        Delegate("none", "/a", b"{}").status()
    assert told.value.code == 50
    (tmp_path / "text").write_text("no program")
    with pytest.raises(CniError, match="text: Permission denied") as told:
        Delegate("text", str(tmp_path), b"{}").add()
    assert told.value.code == 5


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("""echo '{"code": 110, "msg": "no lease", "details": "ask"}'; exit 1""", 110, "^no lease$"),
        ("echo oops; exit 3", 107, "IPAM plugin ipam: ADD: exit status 3 without an error result: 'oops"),
        ("""echo '{"code": "x", "msg": 1}'; exit 1""", 107, "exit status 1 without"),
        ("kill -9 $$", 107, "ended by signal 9"),
        ("echo oops", 107, "its result is not JSON: 'oops"),
        (r"""printf '\357\273\277{"ips": [{"address": "10.0.0.2/24"}]}'""", 107, "is not JSON"),
        (r"""printf '\377\376{\0}\0'; exit 1""", 107, "exit status 1 without an error result"),
        (r"""printf '{"code": 110, "msg": "\351"}'; exit 1""", 107, "exit status 1 without an error result"),
        ("echo []", 107, "is not an object"),
        ("true", 107, "is not JSON"),
        ("""echo '{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}}'""", 107, "is of version '0.2.0'"),
        ("""echo '{"cniVersion": "1.0.0"}'""", 107, "has no address"),
        ("""echo '{"ips": {}}'""", 107, "no address"),
        ("""echo '{"ips": {"a": 1}}'""", 107, "ips is not a list"),
        ("""echo '{"ips": [5]}'""", 107, r"its result.ips\[0\].address"),
        ("""echo '{"ips": [{"address": "10.0.0.2/33"}]}'""", 107, r"its result.ips\[0\]"),
        ("""echo '{"ips": [{"address": "10.0.0.2/24"}], "routes": [{}]}'""", 107, r"its result.routes\[0\].dst"),
        ("""echo '{"ips": [{"address": "10.0.0.2/24"}], "dns": 5}'""", 107, "its result.dns"),
        ("while :; do echo 0123456789012345678901234567890123456789; done", 5, "its output exceeds 1048576 bytes"),
        ("head -c 2000000 /dev/zero", 5, "output of 2000000 bytes"),
    ],
)
def test_what_it_does_wrong(tmp_path: Path, script: str, code: int, words: str) -> None:
    with pytest.raises(CniError, match=words) as told:
        scripted(tmp_path, script).add()
    assert told.value.code == code
    assert told.value.details == ("ask" if code == 110 else "")


def test_an_index_of_its_interfaces_is_not_ours(tmp_path: Path) -> None:
    answer = answering(
        tmp_path, cniVersion="0.4.0", ips=[{"version": "4", "address": "10.0.0.2/24", "interface": 0}]
    ).add()
    assert [entry.address for entry in answer.addresses] == [ip_interface("10.0.0.2/24")]


def children() -> set[str]:
    return {name for path in Path("/proc/self/task").glob("*/children") for name in path.read_text().split()}


def test_a_hung_one_is_killed(tmp_path: Path) -> None:
    before = children()
    started = time.monotonic()
    hung = scripted(tmp_path, "exec sleep 60")
    with pytest.raises(CniError, match="not finished in time, so it was killed") as told:
        child.run(hung.executable(), {"PATH": "/usr/bin:/bin"}, b"", limit=0.2)
    assert told.value.code == 11
    assert time.monotonic() - started < 5
    assert children() == before


def test_a_hung_one_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """A script that waits for a program: the script alone would leave the program running for good."""
    mark = tmp_path / "pid"
    hung = scripted(tmp_path, f"sleep 60 & echo $! > {mark}; wait")
    with pytest.raises(CniError, match="it was killed"):
        child.run(hung.executable(), {"PATH": "/usr/bin:/bin"}, b"", limit=0.5)
    started = Path(f"/proc/{mark.read_text().strip()}")
    deadline = time.monotonic() + 5
    # Init reaps it; until then it is a zombie.
    while started.exists() and ") Z" not in (started / "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_it_leaves_behind_holds_nothing_up(tmp_path: Path) -> None:
    started = time.monotonic()
    status, out = child.run(scripted(tmp_path, "sleep 3 & echo done").executable(), {"PATH": "/usr/bin:/bin"}, b"", 10)
    assert (status, out) == (0, b"done\n")
    assert time.monotonic() - started < 2


def test_what_ends_our_wait_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime's SIGTERM raises there."""

    class Ended(BaseException):
        pass

    def ended() -> None:
        raise Ended

    before = children()
    hung = scripted(tmp_path, "exec sleep 60").executable()
    monkeypatch.setattr(child, "select", SimpleNamespace(poll=ended))
    with pytest.raises(Ended):
        child.run(hung, {"PATH": "/usr/bin:/bin"}, b"", 10)
    assert children() == before


def test_undo_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted(tmp_path, "exit 1").undo()
    assert "while undoing an ADD: IPAM plugin ipam: " in caplog.text


def test_as_text_and_back(tmp_path: Path) -> None:
    one = scripted(tmp_path, "true", stdin=b'{"name": "\xff"}')
    assert Delegate.from_json(one.to_json()) == one
    for text in ("[]", "{}", "5", "[1, 2, 3, 4, 5, 6, 7]", ""):
        with pytest.raises(ValueError, match=r"not a delegation|Expecting value"):
            Delegate.from_json(text)


def test_several_at_once(tmp_path: Path) -> None:
    """Threads of the agent: each gets its own answer."""
    path = scripted(tmp_path, "cat").executable()
    found: dict[int, tuple[int, bytes]] = {}

    def call(number: int) -> None:
        found[number] = child.run(path, {"PATH": "/usr/bin:/bin"}, str(number).encode(), 10)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: (0, str(number).encode()) for number in range(8)}
