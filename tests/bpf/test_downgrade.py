"""A version refuses to follow one that kept what it cannot read, before it changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodenet.agent.datapath import Datapath
from nodenet.bpf.pins import Pins
from nodenet.cli.main import root
from nodenet.config import Config
from nodenet.errors import CannotRunError
from nodenet.tables import state

pytestmark = pytest.mark.kernel
LATER = state.STATE + 1


@pytest.fixture
def config(bpffs: Path, bpf_cache: Path, tmp_path: Path) -> Iterator[Config]:
    config = Config("n1", run_dir=tmp_path, bpffs=bpffs / "downgrade", cache_dir=bpf_cache, services=False)
    try:
        yield config
    finally:
        Pins(config.bpffs).remove()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_number_is_stored_and_a_later_one_refused(config: Config, tmp_path: Path) -> None:
    pins = Pins(config.bpffs)
    assert pins.state() == 0
    Datapath(config).close()
    assert pins.state() == state.STATE

    pins.set_state(LATER)
    before = files(config.bpffs)
    with pytest.raises(CannotRunError, match=f"a later version kept connections .*state {LATER}"):
        Datapath(config)
    assert files(config.bpffs) == before

    file, plugins = tmp_path / "agent.yaml", tmp_path / "bin"
    file.write_text(f"{{node_name: n1, bpffs: {config.bpffs}, cache_dir: {config.cache_dir}, services: false}}")
    words = ["node", "init", "--config", str(file), "--bin-dir", str(plugins)]
    done = CliRunner().invoke(root, words)
    assert (done.exit_code, plugins.exists()) == (3, False), done.output
    assert "a later version kept connections" in done.stderr
    done = CliRunner().invoke(root, ["agent", "--check", "--config", str(file)])
    assert (done.exit_code, "a later version kept" in done.stderr) == (3, True), done.output

    file.write_text(file.read_text().replace("{", "{allow_downgrade: true, ", 1))
    assert CliRunner().invoke(root, words).exit_code == 0
    assert plugins.exists()


def test_a_downgrade_that_is_allowed_has_the_smaller_number(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    pins = Pins(config.bpffs)
    pins.make()
    pins.set_state(LATER)
    Datapath(replace(config, allow_downgrade=True)).close()
    assert pins.state() == state.STATE
    assert "allow_downgrade: " in caplog.text
