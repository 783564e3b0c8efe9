"""Readers and defaults of the plain configuration keys. An invalid value raises ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nodenet.cni.routes import routes

DEFAULT_SOCKET = "/run/nodenet/cni.sock"


class Key(NamedTuple):
    """The reader and the default of a key. `attribute` "": the key is validated but not used."""

    attribute: str
    read: Callable[[Any], Any]
    default: Any


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected text")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("expected an absolute path")
    # JSON may contain unpaired surrogates, which a file name cannot.
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("expected an absolute path of whole characters")
    return Path(value)


def _mtu(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not (value == 0 or 68 <= value <= 65535):
        raise ValueError("expected 68-65535, or 0 for the default")
    return value


def _vlan(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 4094:
        raise ValueError("expected a VLAN of 1-4094, or 0 for none")
    return value


def _trunk(value: Any) -> tuple[int, ...]:
    """`[{"id": 5}, {"minID": 10, "maxID": 20}]` as sorted numbers."""
    found: set[int] = set()
    for index, item in enumerate(_list(value)):
        if not isinstance(item, dict):
            raise ValueError(f"[{index}]: expected an object with id, or minID and maxID")
        low, high = item.get("minID"), item.get("maxID")
        if (low is None) != (high is None) or (low is None and item.get("id") is None):
            raise ValueError(f"[{index}]: expected id, or minID and maxID")
        for number in (low, high, item.get("id")):
            if number is not None and not (type(number) is int and 1 <= number <= 4094):
                raise ValueError(f"[{index}]: expected VLANs of 1-4094")
        if low is not None and high is not None:
            if low > high:
                raise ValueError(f"[{index}]: minID {low} is above maxID {high}")
            found.update(range(low, high + 1))
        if item.get("id") is not None:
            found.add(item["id"])
    return tuple(sorted(found))


def _backend(value: Any) -> str:
    if value not in ("iptables", "nftables"):
        raise ValueError("expected iptables or nftables")
    return str(value)


def _interface(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x2e\x30-\x39\x3b-\x7e]{1,15}", value) or value in "..":
        raise ValueError("expected an interface name of 1-15 characters without '/', ':' or spaces")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return value


def _dns(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    for name in ("nameservers", "search", "options"):
        if not isinstance(value.get(name, []), list) or any(not isinstance(item, str) for item in value.get(name, [])):
            raise ValueError(f"{name}: expected a list of texts")
    if not isinstance(value.get("domain", ""), str):
        raise ValueError("domain: expected text")
    return {name: value[name] for name in ("nameservers", "domain", "search", "options") if value.get(name)}


BRIDGE_KEYS: dict[str, Key] = {
    "bridge": Key("bridge", _interface, "cni0"),
    "isGateway": Key("is_gateway", _boolean, False),
    "isDefaultGateway": Key("is_default_gateway", _boolean, False),
    "forceAddress": Key("force_address", _boolean, False),
    "mtu": Key("mtu", _mtu, 0),
    "hairpinMode": Key("hairpin", _boolean, False),
    "promiscMode": Key("promiscuous", _boolean, False),
    "dns": Key("dns", _dns, {}),
    "agentSocket": Key("agent_socket", _path, Path(DEFAULT_SOCKET)),
    "requireAgent": Key("require_agent", _boolean, False),
    "ipMasq": Key("ip_masq", _boolean, False),
    # Selects one of two programs in the reference plugin. We use neither, so both values mean the same.
    "ipMasqBackend": Key("", _backend, ""),
    "vlan": Key("vlan", _vlan, 0),
    "vlanTrunk": Key("trunk", _trunk, ()),
    "preserveDefaultVlan": Key("preserve_default_vlan", _boolean, True),
    "macspoofchk": Key("mac_spoof_check", _boolean, False),
    "enabledad": Key("enable_dad", _boolean, False),
    "portIsolation": Key("port_isolation", _boolean, False),
    "disableContainerInterface": Key("container_interface_down", _boolean, False),
}
IPAM_KEYS: dict[str, Key] = {
    "dataDir": Key("data_dir", _path, Path("/var/lib/cni/networks")),
    "resolvConf": Key("resolv_conf", _path, None),
    "routes": Key("routes", routes, ()),
}
