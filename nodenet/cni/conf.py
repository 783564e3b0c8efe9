"""The network configuration: all keys of the reference `bridge` and `host-local` plugins, and our own.

keys.py reads plain keys; this module reads keys that depend on each other. docs/cni.md describes each key. Unknown keys
are ignored. A known key with an invalid value is error 7 and names the key; input that is not a JSON object is error 6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet.cni import jsontext
from nodenet.cni.errors import CniError, Code
from nodenet.cni.keys import BRIDGE_KEYS, DEFAULT_SOCKET, IPAM_KEYS, Key
from nodenet.cni.owner import Owner
from nodenet.cni.prevresult import PrevResult
from nodenet.cni.protocol import Reply
from nodenet.cni.ranges import RangeSet, range_sets
from nodenet.cni.routes import PodRoute
from nodenet.endpoint import IPAddress

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The key of GC's list, and its older name.
_VALID = ("cni.dev/valid-attachments", "cni.dev/attachments")
# Error messages show at most this many characters of an invalid value.
_SHOWN = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", re.ASCII)
IPAM_TYPES = ("host-local", "nodenet")
# Verbs that were added after 0.3.1, with the first version that has them.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ipam:
    """The `ipam` section. `sets` is empty if the node's own pod networks are used. `requested` are the addresses
    that the runtime requests, at most one per set."""

    sets: tuple[RangeSet, ...]
    data_dir: Path
    routes: tuple[PodRoute, ...] = ()
    resolv_conf: Path | None = None
    requested: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class NetConf:
    """A validated configuration. `mtu` 0: the kernel's default. `mac` "": we choose it. `ipam` None: we assign no
    addresses. `vlan` 0: none; `trunk`: the tagged VLANs. `valid`: GC's list, None if there is none. `delegate`: the
    name of another IPAM plugin, which assigns addresses and routes; `ipam` is None then."""

    cni_version: str
    name: str
    ipam: Ipam | None
    bridge: str = "cni0"
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    mtu: int = 0
    hairpin: bool = False
    promiscuous: bool = False
    ip_masq: bool = False
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    preserve_default_vlan: bool = True
    mac_spoof_check: bool = False
    enable_dad: bool = False
    port_isolation: bool = False
    container_interface_down: bool = False
    mac: str = ""
    dns: Mapping[str, Any] = field(default_factory=dict)
    agent_socket: Path = Path(DEFAULT_SOCKET)
    require_agent: bool = False
    # The MTU is the agent's and may have changed since the bridge was created.
    bridge_follows_mtu: bool = False
    prev: PrevResult | None = None
    valid: frozenset[Owner] | None = None
    delegate: str = ""
    delegated_routes: tuple[PodRoute, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The folder of the agent's files, which also contains its socket."""
        return self.agent_socket.parent


def parse(stdin: bytes, args: Mapping[str, str], verb: str = "ADD") -> NetConf:
    """Read and validate a configuration. `args` are CNI_ARGS, which may request an address and a MAC.

    DEL and GC read only the keys that they need, because they must also work with a configuration that ADD rejects.
    They ignore a `prevResult` that cannot be read.
    """
    data = decode(stdin)
    version = version_of(data)
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion: expected one of {', '.join(SUPPORTED_VERSIONS)}, got {version!r}"
        )
    since = _SINCE.get(verb, version)
    if SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion: {verb} needs {since} or newer, got {version!r}")
    name = data.get("name")
    if "plugins" in data and "type" not in data:
        message = "network configuration: expected the configuration of one plugin, got a list (conflist)"
        raise CniError(
            Code.BAD_CONFIG,
            message,
            "pass one entry of its plugins with the list's name and cniVersion added, as a runtime does",
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        raise _bad("network configuration", "name", "expected letters, digits, '_', '.', '-'", name)
    where = f"network {name}"
    if verb in ("DEL", "GC"):
        return _for_removal(where, data, verb, version, name)
    values = _read(where, "", data, BRIDGE_KEYS)
    values["is_gateway"] = values["is_gateway"] or values["is_default_gateway"]
    if values["promiscuous"] and values["hairpin"]:
        raise _bad(where, "promiscMode", "cannot be combined with hairpinMode", True)
    delegate = _delegate(where, data)
    ipam = None if delegate else _ipam(where, data, args)
    if (ipam is not None or delegate) and values["container_interface_down"]:
        raise _bad(where, "disableContainerInterface", "cannot be combined with ipam", True)
    return NetConf(
        cni_version=version,
        name=name,
        ipam=ipam,
        mac=_mac(where, data, args),
        prev=_prev(where, data, verb),
        delegate=delegate,
        **values,
    )


def _for_removal(where: str, data: Mapping[str, Any], verb: str, version: str, name: str) -> NetConf:
    """The configuration for DEL and GC. It has only the fields that removal needs: the location of leases and records,
    prevResult, ipMasq, the name of another IPAM plugin, and GC's list. All other keys are ignored."""
    ipam, delegate = data.get("ipam"), _delegate(where, data)
    found = None
    if isinstance(ipam, dict) and ipam and not delegate:
        found = Ipam((), _read(where, "ipam.", ipam, {"dataDir": IPAM_KEYS["dataDir"]})["data_dir"])
    return NetConf(
        cni_version=version,
        name=name,
        ipam=found,
        prev=_prev(where, data, verb),
        valid=_valid(where, data) if verb == "GC" else None,
        ip_masq=data.get("ipMasq") is True,
        delegate=delegate,
        **_read(where, "", data, {"agentSocket": BRIDGE_KEYS["agentSocket"]}),
    )


def decode(stdin: bytes) -> dict[str, Any]:
    """The configuration as a JSON object. Raises CniError with code 6."""
    try:
        data = jsontext.loads(stdin)
    except ValueError as error:
        raise CniError(Code.DECODE_FAILURE, f"standard input: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CniError(Code.DECODE_FAILURE, f"standard input: expected a JSON object, got {type(data).__name__}")
    return data


def version_of(data: Mapping[str, Any]) -> str:
    """cniVersion; without the key it is 0.1.0 (SPEC.md, section 1)."""
    version = data.get("cniVersion", "0.1.0")
    if not isinstance(version, str):
        raise CniError(Code.DECODE_FAILURE, f"cniVersion: expected text, got {version!r}")
    return version


def version_answer(stdin: bytes) -> str:
    """The output of VERSION. It uses the requested version, or our newest one if that is missing or unsupported."""
    asked = decode(stdin).get("cniVersion") if stdin.strip() else None
    version = asked if asked in SUPPORTED_VERSIONS else SUPPORTED_VERSIONS[-1]
    return json.dumps({"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)})


def failure(stdin: bytes, error: CniError) -> Reply:
    """The error reply, in the version of the configuration if that can be read."""
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
    return values


def _ipam(where: str, data: Mapping[str, Any], args: Mapping[str, str]) -> Ipam | None:
    """The ipam section; None if it is absent or empty: then we assign no addresses."""
    ipam = data.get("ipam")
    if ipam is None or ipam == {}:
        return None
    if not isinstance(ipam, dict):
        raise _bad(where, "ipam", "expected an object", ipam)
    kind = ipam.get("type", "host-local")
    values = _read(where, "ipam.", ipam, IPAM_KEYS)
    runtime = _object(where, "runtimeConfig", data)
    try:
        sets = range_sets(ipam, runtime.get("ipRanges"))
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"{where}: {error}") from error
    if sets and kind == "nodenet":
        message = f"{where}: ipam.ranges: type nodenet uses the node's own pod networks, so ranges must be absent"
        raise CniError(Code.BAD_CONFIG, message)
    cni_args = _object(where, "args.cni", _object(where, "args", data))
    wanted = _texts(where, "args.cni.ips", cni_args.get("ips"))
    wanted += _texts(where, "runtimeConfig.ips", runtime.get("ips"))
    if args.get("IP"):
        wanted += args["IP"].split(",")
    requested = dict.fromkeys(_address(where, text) for text in wanted)
    return Ipam(sets=sets, requested=tuple(requested), **values)


def _delegate(where: str, data: Mapping[str, Any]) -> str:
    """The name of another IPAM plugin's executable; "" if we assign the addresses, or if there are none."""
    ipam = data.get("ipam")
    kind = ipam.get("type", "host-local") if isinstance(ipam, dict) else "host-local"
    if isinstance(kind, str) and kind in IPAM_TYPES:
        return ""
    # Accept only a file name, so that the executable is searched in CNI_PATH only.
    if not isinstance(kind, str) or not _NAME.fullmatch(kind):
        message = (
            f"{where}: ipam.type: {json.dumps(kind)} is neither {' nor '.join(IPAM_TYPES)}, nor an executable's name"
        )
        raise CniError(Code.UNSUPPORTED_FIELD, message)
    return kind


def _prev(where: str, data: Mapping[str, Any], verb: str) -> PrevResult | None:
    if data.get("prevResult") is None:
        if verb == "CHECK":
            raise _bad(where, "prevResult", "required for CHECK", None)
        return None
    try:
        return PrevResult.read(data["prevResult"])
    except ValueError as error:
        if verb in ("DEL", "GC"):
            return None
        raise CniError(Code.BAD_CONFIG, f"{where}: prevResult{error}") from error


def _valid(where: str, data: Mapping[str, Any]) -> frozenset[Owner] | None:
    """GC's list. libcni writes an empty list as null. The key is absent if the runtime gives no list: then return
    None, because the valid attachments are not known. Specifications before libcni #1101 used another key."""
    key = next((name for name in _VALID if name in data), "")
    if not key:
        return None
    if data[key] is not None and not isinstance(data[key], list):
        raise _bad(where, key, "expected a list", data[key])
    found = set()
    for item in data[key] or ():
        container_id, ifname = (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else ("", "")
        if not isinstance(container_id, str) or not isinstance(ifname, str) or not container_id or not ifname:
            raise _bad(where, key, "expected objects with containerID and ifname", item)
        found.add(Owner(container_id, ifname))
    return frozenset(found)


def _mac(where: str, data: Mapping[str, Any], args: Mapping[str, str]) -> str:
    """Precedence as in the reference plugin: runtimeConfig, then args.cni, then CNI_ARGS."""
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
    shown = json.dumps(got)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return CniError(Code.BAD_CONFIG, f"{where}: {key}: {expected}, got {shown}")
