"""The agent's configuration file, and what a pod's environment supplies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nodenet.config import Config, parse
from nodenet.errors import BadInputError

# Environment variables that supply a key which the file does not have. A DaemonSet sets the first one by the downward
# API (spec.nodeName), because all its pods read the same file.
NODE_NAME = ("NODENET_NODE_NAME", "NODE_NAME")
API_SERVERS = "NODENET_API_SERVERS"
METRICS_ADDRESS = "NODENET_METRICS_ADDRESS"


def read_config_of_any_node(path: Path) -> Config:
    """Like `read_config`, for commands to which the node's name does not matter: it need not be given."""
    return read_config(path, {NODE_NAME[0]: "-", **os.environ})


def read_config(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file. Raises BadInputError that names the file and all wrong keys."""
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{path}: not YAML: {error}") from error
    # An empty file means: everything by default.
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    return parse(_from_environment(environ) | data, str(path))


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    name = next((environ[key] for key in NODE_NAME if environ.get(key)), "")
    if name:
        found["node_name"] = name
    servers = [text.strip() for text in environ.get(API_SERVERS, "").split(",") if text.strip()]
    if servers:
        found["api_servers"] = servers
    if environ.get(METRICS_ADDRESS):
        found["metrics_address"] = environ[METRICS_ADDRESS]
    return found
