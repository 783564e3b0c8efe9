"""The configuration file of kubernetes-sigs/ip-masq-agent, which clusters mount as a ConfigMap."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from nodenet.errors import BadInputError
from nodenet.model import IPNetwork


@dataclass(frozen=True, slots=True)
class IpMasqFile:
    """`networks`: nonMasqueradeCIDRs. `link_local` and `link_local6`: None if there is no file."""

    networks: tuple[IPNetwork, ...] = ()
    link_local: bool | None = None
    link_local6: bool | None = None

    def masquerades_link_local(self, version: int) -> bool:
        """With a file its keys decide, and their default is no. Without one 169.254.0.0/16 is masqueraded, because
        nothing there has a route to pods."""
        given = self.link_local if version == 4 else self.link_local6
        return version == 4 if given is None else given


def read_file(path: Path) -> IpMasqFile:
    """The content of the file; the default if there is none. Raises BadInputError that names file and field."""
    try:
        data = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return IpMasqFile()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: neither YAML nor JSON: {error}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    networks = data.get("nonMasqueradeCIDRs") or []
    if not isinstance(networks, list):
        raise BadInputError(f"{path}: nonMasqueradeCIDRs: expected a list, got {networks!r}")
    return IpMasqFile(
        tuple(_network(path, index, text) for index, text in enumerate(networks)),
        _boolean(path, data, "masqLinkLocal"),
        _boolean(path, data, "masqLinkLocalIPv6"),
    )


def _network(path: Path, index: int, text: Any) -> IPNetwork:
    try:
        if not isinstance(text, str):
            raise ValueError
        return ip_network(text)
    except ValueError:
        message = f"{path}: nonMasqueradeCIDRs[{index}]: expected a network such as 10.0.0.0/8, got {text!r}"
        raise BadInputError(message) from None


def _boolean(path: Path, data: dict[str, Any], key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise BadInputError(f"{path}: {key}: expected true or false, got {value!r}")
    return value
