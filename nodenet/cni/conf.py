"""The network configuration: every key of the reference `bridge` and `host-local` plugins, and our own, in one place.

`BRIDGE_KEYS` and `IPAM_KEYS` say how each key is read and whether it is carried out. A key that is known but not
carried out yet is refused when it asks for something (code 2, with key and value, as the specification words it); an
unknown one is ignored. A known key with a bad value is code 7 naming the key; what is no JSON object is code 6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from nodenet.cni.errors import CniError, Code
from nodenet.cni.protocol import Reply
from nodenet.cni.ranges import RangeSet, range_sets
from nodenet.cni.routes import PodRoute, routes
from nodenet.model import IPAddress

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_SOCKET = "/run/nodenet/cni.sock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", re.ASCII)
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ipam:
    """The `ipam` section. `requested` are addresses asked for by the runtime, at most one per range set."""

    sets: tuple[RangeSet, ...]
    data_dir: Path
    routes: tuple[PodRoute, ...] = ()
    resolv_conf: Path | None = None
    requested: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class NetConf:
    """A checked configuration. `mtu` 0 is the kernel's default; `mac` "" leaves the choice to us."""

    cni_version: str
    name: str
    ipam: Ipam
    bridge: str = "cni0"
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    mtu: int = 0
    hairpin: bool = False
    promiscuous: bool = False
    mac: str = ""
    dns: Mapping[str, Any] = field(default_factory=dict)
    agent_socket: Path = Path(DEFAULT_SOCKET)
    require_agent: bool = False

    @property
    def run_dir(self) -> Path:
        """Where the agent of this node keeps its files: its socket stands there too."""
        return self.agent_socket.parent


class Key(NamedTuple):
    """How a key is read. `attribute` "" : not carried out yet, refused unless it says `default`."""

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
    return Path(value)


def _mtu(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not (value == 0 or 68 <= value <= 65535):
        raise ValueError("expected 68-65535, or 0 for the default")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("expected a number")
    return value


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
    # Known, not carried out yet.
    "ipMasq": Key("", _boolean, False),
    "ipMasqBackend": Key("", str, ""),
    "vlan": Key("", _number, 0),
    "vlanTrunk": Key("", _list, []),
    "preserveDefaultVlan": Key("", _boolean, True),
    "macspoofchk": Key("", _boolean, False),
    "enabledad": Key("", _boolean, False),
    "portIsolation": Key("", _boolean, False),
    "disableContainerInterface": Key("", _boolean, False),
}
IPAM_KEYS: dict[str, Key] = {
    "dataDir": Key("data_dir", _path, Path("/var/lib/cni/networks")),
    "resolvConf": Key("resolv_conf", _path, None),
    "routes": Key("routes", routes, ()),
}


def parse(stdin: bytes, args: Mapping[str, str]) -> NetConf:
    """Read and check a configuration; `args` are CNI_ARGS, which may ask for an address and a MAC."""
    data = decode(stdin)
    version = version_of(data)
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion: expected one of {', '.join(SUPPORTED_VERSIONS)}, got {version!r}"
        )
    name = data.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        raise _bad("network configuration", "name", "expected letters, digits, '_', '.', '-'", name)
    where = f"network {name}"
    values = _read(where, "", data, BRIDGE_KEYS)
    values["is_gateway"] = values["is_gateway"] or values["is_default_gateway"]
    return NetConf(cni_version=version, name=name, ipam=_ipam(where, data, args), mac=_mac(where, data, args), **values)


def decode(stdin: bytes) -> dict[str, Any]:
    """The configuration as plain JSON. Raises CniError with code 6."""
    try:
        data = json.loads(stdin)
    except (ValueError, RecursionError) as error:
        raise CniError(Code.DECODE_FAILURE, f"standard input: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CniError(Code.DECODE_FAILURE, f"standard input: expected a JSON object, got {type(data).__name__}")
    return data


def version_of(data: Mapping[str, Any]) -> str:
    """cniVersion; a configuration without one is of 0.1.0 (SPEC.md, section 1)."""
    version = data.get("cniVersion", "0.1.0")
    if not isinstance(version, str):
        raise CniError(Code.DECODE_FAILURE, f"cniVersion: expected text, got {version!r}")
    return version


def version_answer(stdin: bytes) -> str:
    """What VERSION prints. A request without a version that we speak is answered in our newest."""
    asked = decode(stdin).get("cniVersion") if stdin.strip() else None
    version = asked if asked in SUPPORTED_VERSIONS else SUPPORTED_VERSIONS[-1]
    return json.dumps({"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)})


def failure(stdin: bytes, error: CniError) -> Reply:
    """An error as the runtime wants it, in the version that its configuration asked for if that can be read."""
    version = SUPPORTED_VERSIONS[-1]
    try:
        asked = version_of(decode(stdin))
        version = asked if asked in SUPPORTED_VERSIONS else version
    except CniError:
        pass
    return Reply(1, error.to_json(version).encode())


def _read(where: str, prefix: str, data: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    values = {}
    for name, key in keys.items():
        value = key.default
        if data.get(name) is not None:
            try:
                value = key.read(data[name])
            except ValueError as error:
                raise _bad(where, prefix + name, str(error), data[name]) from error
        if key.attribute:
            values[key.attribute] = value
        elif value != key.default:
            message = f"{where}: {prefix}{name}: {json.dumps(data[name])} is not supported yet"
            raise CniError(Code.UNSUPPORTED_FIELD, message)
    return values


def _ipam(where: str, data: Mapping[str, Any], args: Mapping[str, str]) -> Ipam:
    ipam = data.get("ipam")
    if not isinstance(ipam, dict):
        raise _bad(where, "ipam", "required, expected an object", ipam)
    if ipam.get("type", "host-local") != "host-local":
        raise CniError(Code.UNSUPPORTED_FIELD, f"{where}: ipam.type: {ipam['type']!r} is not supported, use host-local")
    values = _read(where, "ipam.", ipam, IPAM_KEYS)
    runtime = _object(where, "runtimeConfig", data)
    try:
        sets = range_sets(ipam, runtime.get("ipRanges"))
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"{where}: {error}") from error
    cni_args = _object(where, "args.cni", _object(where, "args", data))
    wanted = _texts(where, "args.cni.ips", cni_args.get("ips"))
    wanted += _texts(where, "runtimeConfig.ips", runtime.get("ips"))
    if args.get("IP"):
        wanted += args["IP"].split(",")
    return Ipam(sets=sets, requested=tuple(_address(where, text) for text in wanted), **values)


def _mac(where: str, data: Mapping[str, Any], args: Mapping[str, str]) -> str:
    """The reference's order: runtimeConfig over args.cni over CNI_ARGS."""
    cni_args = _object(where, "args.cni", _object(where, "args", data))
    runtime = _object(where, "runtimeConfig", data)
    mac = runtime.get("mac") or cni_args.get("mac") or args.get("MAC") or ""
    if mac and (not isinstance(mac, str) or not _MAC.fullmatch(mac.lower()) or int(mac[:2], 16) & 1):
        raise _bad(where, "mac", "expected a unicast address like 02:00:00:00:00:01", mac)
    return str(mac).lower()


def _object(where: str, path: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    value = data.get(path.rpartition(".")[2])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(where, path, "expected an object", value)
    return value


def _texts(where: str, path: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise _bad(where, path, "expected a list of addresses", value)
    return list(value)


def _address(where: str, text: str) -> IPAddress:
    try:
        return ip_address(text.partition("/")[0])
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"{where}: requested address: {text!r} is not an IP address") from error


def _bad(where: str, key: str, expected: str, got: object) -> CniError:
    return CniError(Code.BAD_CONFIG, f"{where}: {key}: {expected}, got {json.dumps(got)}")
