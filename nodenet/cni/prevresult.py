"""`prevResult`: the result of an earlier plugin of the chain, or of our own ADD, in any supported version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from nodenet.cni.routes import PodRoute, routes
from nodenet.endpoint import IPAddress


@dataclass(frozen=True, slots=True)
class PrevInterface:
    """An interface of a result; `sandbox` is "" on the node."""

    name: str
    mac: str
    sandbox: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PrevAddress:
    """An address of a result; `interface` is an index into the interfaces, -1 if none is named."""

    address: IPv4Interface | IPv6Interface
    gateway: IPAddress | None
    interface: int


@dataclass(frozen=True, slots=True)
class PrevResult:
    """A result and its original JSON, which is passed on with all fields, also unknown ones."""

    interfaces: tuple[PrevInterface, ...]
    addresses: tuple[PrevAddress, ...]
    routes: tuple[PodRoute, ...]
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, value: Any) -> PrevResult:
        """Raises ValueError that begins with the path of the invalid value, such as ".ips[0].address: ..."."""
        if not isinstance(value, dict):
            raise ValueError(": expected an object")
        interfaces = tuple(_interface(f".interfaces[{n}]", item) for n, item in _items(value, "interfaces"))
        addresses = tuple(_address(f".ips[{n}]", item, len(interfaces)) for n, item in _items(value, "ips"))
        try:
            found = routes(value.get("routes") or [])
        except ValueError as error:
            raise ValueError(f".routes{error}") from error
        if not isinstance(value.get("dns") or {}, dict):
            raise ValueError(".dns: expected an object")
        return cls(interfaces, addresses, found, value)

    def inside(self, sandbox: str, ifname: str) -> int:
        """The index of the interface with this name in the sandbox; -1 if there is none."""
        for index, entry in enumerate(self.interfaces):
            if entry.name == ifname and entry.sandbox == sandbox:
                return index
        return -1


def _items(value: Mapping[str, Any], key: str) -> list[tuple[int, Any]]:
    items = value.get(key) or []
    if not isinstance(items, list):
        raise ValueError(f".{key}: expected a list")
    return list(enumerate(items))


def _interface(path: str, item: Any) -> PrevInterface:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError(f"{path}.name: expected the name of an interface")
    mac, sandbox, mtu = (item.get(key) or default for key, default in (("mac", ""), ("sandbox", ""), ("mtu", 0)))
    if not isinstance(mac, str) or not isinstance(sandbox, str) or type(mtu) is not int:
        raise ValueError(f"{path}: expected texts for mac and sandbox, and a number for mtu")
    return PrevInterface(item["name"], mac.lower(), sandbox, mtu)


def _address(path: str, item: Any, interfaces: int) -> PrevAddress:
    if not isinstance(item, dict) or not isinstance(item.get("address"), str):
        raise ValueError(f"{path}.address: expected an address with its prefix")
    index = -1 if item.get("interface") is None else item["interface"]
    if type(index) is not int or not -1 <= index < interfaces:
        raise ValueError(f"{path}.interface: expected the index of an interface")
    try:
        gateway = ip_address(item["gateway"]) if item.get("gateway") else None
        return PrevAddress(ip_interface(item["address"]), gateway, index)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
