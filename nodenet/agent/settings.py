"""The agent's configuration file."""

from __future__ import annotations

from pathlib import Path

import yaml

from nodenet.config import Config, parse
from nodenet.errors import BadInputError


def read_config(path: Path) -> Config:
    """Read and check the file. Raises BadInputError that names the file and all wrong keys."""
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    return parse(data, str(path))
