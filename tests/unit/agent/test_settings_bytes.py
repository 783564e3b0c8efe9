"""A configuration file that is not text gives an error with its name, not a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.agent.settings import read_config
from nodenet.errors import BadInputError
from nodenet.kube.config import load


def test_bytes_that_are_no_utf8_are_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_bytes(b"node_name: \xe9\n")
    with pytest.raises(BadInputError, match=r"agent\.yaml: not YAML"):
        read_config(file)
    with pytest.raises(BadInputError, match=r"agent\.yaml"):
        load(file)
