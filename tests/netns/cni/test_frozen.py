"""The frozen file in surroundings that the source does not care about: odd bytes, closed descriptors, a reboot."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.link import everywhere, netns
from tests.unit.cni.test_conf import NO_JSON

pytestmark = pytest.mark.kernel


def run(world: Any, verb: str, pod: str = "", stdin: bytes | None = None, **changes: Any) -> Any:
    """The plugin alone in the C locale, with other bytes or descriptors; nothing is ever traced."""
    env = os.environ | world.env(verb, "c1", pod) | {"LC_ALL": "C", "PYTHONUTF8": "0"} | changes
    done = netns.run(world.node, [world.alone], env=env, input=stdin or world.conf(), capture_output=True, timeout=30)
    assert b"Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("stdin", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json(world: Any, stdin: bytes) -> None:
    done = run(world, "ADD", world.pod(), stdin)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 6)
    assert world.left() == []


@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_COMMAND"])
def test_an_environment_that_is_not_utf8(world: Any, name: str) -> None:
    done = run(world, "ADD", world.pod(), **{name: os.fsdecode(b"\xff\xe9=\xed\xa0\x80")})
    assert done.returncode == (0 if name in ("CNI_ARGS", "CNI_PATH") else 1), done.stdout
    json.loads(done.stdout)
    assert run(world, "DEL", world.pods[-1]).returncode == 0
    assert world.left() == []


@pytest.fixture
def odd_mounts(tmp_path: Path) -> Iterator[list[bytes]]:
    """Namespaces that are mounted where a path has what mountinfo escapes, and bytes that are no UTF-8."""
    paths = [
        os.fsencode(tmp_path) + b"/" + name
        for name in (b"a b", b"back\\slash", b"tab\tnew\nline", b"\xe9\xff", b"\xc3\xa9")
    ]
    for path in paths:
        Path(os.fsdecode(path)).touch()
        subprocess.run([b"unshare", b"--net=" + path, b"true"], check=True)
    try:
        yield paths
    finally:
        for path in paths:
            subprocess.run([b"umount", path], check=True)


def test_after_a_reboot_beside_mounts_of_any_name(world: Any, odd_mounts: list[bytes]) -> None:
    """Leases of before are free again, but those whose address a namespace has, wherever that is mounted."""
    for number, path in enumerate(odd_mounts):
        lines = f"ip addr add 10.77.0.{20 + number}/32 dev lo"
        netns.run(os.fsdecode(path), ["sh", "-c", lines], check=True)
    found = {os.fsencode(path) for path in everywhere.namespaces(strict=False)}
    assert set(odd_mounts) <= found
    folder = world.leases / "net"
    folder.mkdir(parents=True)
    for number in range(15, 20 + len(odd_mounts)):
        (folder / f"10.77.0.{number}").write_bytes(b"before\r\neth0")
    (folder / ".boot").write_text("00000000-0000-0000-0000-000000000000")
    assert run(world, "ADD", world.pod()).returncode == 0
    kept = {path.name for path in folder.glob("10.77.0.*")} - {"10.77.0.2"}
    assert kept == {f"10.77.0.{20 + number}" for number in range(len(odd_mounts))}


def test_beside_an_interface_whose_name_is_not_utf8(world: Any) -> None:
    """The pod's own: enabledad reads a table with the names of all."""
    pod = world.pod()
    for line in (b"add \xff\xe9 type veth peer name odd", b"set \xff\xe9 up", b"set odd up"):
        netns.run(pod, [b"ip", b"link", *line.split(b" ")], check=True)
    with netns.opened(pod) as fd:
        table = netns.call(fd, Path("/proc/thread-self/net/if_inet6").read_bytes)
    assert b"\xff\xe9" in table
    done = run(world, "ADD", pod, world.conf(enabledad=True))
    assert done.returncode == 0, done.stdout
    prev = json.loads(done.stdout)
    assert run(world, "CHECK", pod, world.conf(enabledad=True, prevResult=prev)).returncode == 0
    assert run(world, "DEL", pod).returncode == 0


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_closed_descriptors(world: Any, closed: str) -> None:
    env = os.environ | world.env("VERSION", "", "")
    script = f'exec "$0" {closed}'
    done = netns.run(world.node, ["sh", "-c", script, world.program], env=env, input=b"{}", capture_output=True)
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"
