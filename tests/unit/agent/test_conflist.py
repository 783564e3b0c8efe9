"""The conflist comes when the agent is ready, whole, and again when it is removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nodenet.agent.conflist import ConflistKeeper
from nodenet.cni.conflist import CONFLIST
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
