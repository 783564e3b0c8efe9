"""The conflist comes when the agent is ready, whole, and again when it is removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nodenet.agent.conflist import ConflistKeeper
from nodenet.agent.host_ports import HostPortOwner
from nodenet.cni.conflist import CONFLIST, port_mapper
from nodenet.config import Config


async def written(path: Path) -> None:
    async with asyncio.timeout(5):
        while not path.exists():  # noqa: ASYNC110, ASYNC240  a thread writes it
            await asyncio.sleep(0.005)


async def test_it_is_written_when_the_agent_is_ready_and_again_when_it_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "net.d"
    keeper = ConflistKeeper(Config("n1", run_dir=tmp_path / "run", cni_conf_dir=folder, resync_seconds=0.01))
    ready = asyncio.Event()
    task = asyncio.create_task(keeper.keep(ready))
    await asyncio.sleep(0.05)
    assert not folder.exists()
    ready.set()
    await written(folder / CONFLIST)
    plugin = json.loads((folder / CONFLIST).read_text())["plugins"][0]
    assert (plugin["agentSocket"], plugin["requireAgent"], plugin["mtu"]) == (f"{tmp_path}/run/cni.sock", True, 0)
    assert "ipMasq" not in plugin
    (folder / CONFLIST).unlink()
    await written(folder / CONFLIST)
    task.cancel()
    await asyncio.wait([task])
    # It stays when the agent ends: ADD answers "try again later" then.
    assert (folder / CONFLIST).exists()


def test_an_unchanged_file_is_not_written(tmp_path: Path) -> None:
    for _ in range(2):
        ConflistKeeper(Config("n1", cni_conf_dir=tmp_path)).check(tmp_path)
    before = (tmp_path / CONFLIST).stat().st_ino
    ConflistKeeper(Config("n1", cni_conf_dir=tmp_path)).check(tmp_path)
    assert (tmp_path / CONFLIST).stat().st_ino == before


CHAINED = {"type": "portmap", "capabilities": {"portMappings": True}}
OURS = {"type": "nodenet"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        ({"10-nodenet.conflist": {"plugins": [OURS]}}, ""),
        ({"10-nodenet.conflist": {"plugins": [OURS, CHAINED]}}, "portmap (10-nodenet.conflist)"),
        # portmap without the capability does nothing, but that is not for us to decide: it may have rules.
        ({"10-nodenet.conflist": {"plugins": [OURS, {"type": "portmap"}]}}, "portmap (10-nodenet.conflist)"),
        (
            {"10-nodenet.conflist": {"plugins": [OURS, {"type": "mine", "capabilities": {"portMappings": True}}]}},
            "mine (10-nodenet.conflist)",
        ),
        ({"10-nodenet.conflist": {"plugins": [OURS, {"type": "mine", "capabilities": {"portMappings": False}}]}}, ""),
        # The first valid one is used.
        (
            {"05-a.conflist": "{", "06-b.conf": CHAINED, "10-nodenet.conflist": {"plugins": [OURS]}},
            "portmap (06-b.conf)",
        ),
        ({"05-a.conf": {"type": "bridge"}, "10-nodenet.conflist": {"plugins": [OURS, CHAINED]}}, ""),
        ({"README": "portmap", "05-a.conflist": {"plugins": "no list"}}, ""),
        ({"05-a.conflist": {"plugins": [OURS, {"capabilities": {"portMappings": True}}]}}, ""),
    ],
)
def test_who_serves_host_ports(tmp_path: Path, files: dict[str, object], expected: str) -> None:
    for name, body in files.items():
        (tmp_path / name).write_text(body if isinstance(body, str) else json.dumps(body))
    assert port_mapper(tmp_path).replace(f"{tmp_path}/", "") == expected
    assert port_mapper(tmp_path / "none") == ""


async def test_the_agent_leaves_host_ports_to_a_chained_plugin(tmp_path: Path) -> None:
    """And takes them when the plugin goes; the first look comes before the first compilation."""
    served: list[bool] = []
    owner = HostPortOwner(Config("n1", cni_conf_dir=tmp_path), served.append)
    file = tmp_path / CONFLIST
    for body, whose in (({"plugins": [OURS]}, "agent"), ({"plugins": [OURS, CHAINED]}, f"portmap ({file})")):
        file.write_text(json.dumps(body))
        for _ in range(2):
            await owner.refresh()
            assert owner.served_by == whose
    assert served == [True, False]
    file.unlink()
    file.mkdir()
    await owner.refresh()
    assert owner.served_by == f"portmap ({file})", "what was known stays"
    assert str(file) in owner.problems[0]
    file.rmdir()
    await owner.refresh()
    assert (served, owner.problems) == ([True, False, True], [])


async def test_without_services_or_with_portmap_by_configuration(tmp_path: Path) -> None:
    for config, whose, served in (
        (Config("n1", cni_conf_dir=tmp_path, host_ports=True), "portmap (host_ports)", [False]),
        (Config("n1", host_ports=True), "portmap (host_ports)", [False]),
        (Config("n1"), "agent", [True]),
        # The compiler then names the pods.
        (Config("n1", services=False), "none", [True]),
    ):
        found: list[bool] = []
        owner = HostPortOwner(config, found.append)
        await owner.refresh()
        assert (owner.served_by, found) == (whose, served)


def test_host_ports(tmp_path: Path) -> None:
    ConflistKeeper(Config("n1", cni_conf_dir=tmp_path, host_ports=True)).check(tmp_path)
    plugins = json.loads((tmp_path / CONFLIST).read_text())["plugins"]
    assert plugins[1:] == [{"type": "portmap", "capabilities": {"portMappings": True}}]


def test_a_network_that_comes_before_ours_is_named(tmp_path: Path) -> None:
    for name in ("05-other.conflist", "10-kindnet.conflist", "99-x.conf", "00-note.txt"):
        (tmp_path / name).touch()
    keeper = ConflistKeeper(Config("n1", cni_conf_dir=tmp_path))
    keeper.check(tmp_path)
    names = [problem.partition(":")[0] for problem in keeper.problems]
    assert names == [f"{tmp_path}/05-other.conflist", f"{tmp_path}/10-kindnet.conflist"]


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    keeper = ConflistKeeper(Config("n1", cni_conf_dir=tmp_path / "file"))
    for _ in range(2):
        keeper.check(tmp_path / "file")
    assert len(keeper.problems) == 1
    assert str(tmp_path / "file") in keeper.problems[0]
    assert caplog.text.count("File exists") == 1
