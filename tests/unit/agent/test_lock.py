"""Only one agent per node: a second one changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.agent import lock, main
from nodenet.config import Config
from nodenet.errors import CannotRunError


def test_a_second_agent_is_refused_before_it_touches_a_pin(tmp_path: Path) -> None:
    config = Config(node_name="node1", run_dir=tmp_path / "run", bpffs=tmp_path / "bpffs", cache_dir=tmp_path / "cache")
    with lock.agent_lock(config.run_dir), pytest.raises(CannotRunError, match=r"agent\.lock: another agent"):
        main.run(config)
    assert not config.bpffs.exists()
    assert not config.cache_dir.exists()


def test_the_lock_is_free_again_when_an_agent_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.agent_lock(tmp_path):
            pass
