"""Addresses from another IPAM plugin: `ipam.type` names an executable in CNI_PATH. We call it as we were called
(SPEC.md 1.1.0, section 4, "Plugin Delegation"): with the same verb, environment and standard input, in the same
namespace.

Configurations with host-local do not import this module. The agent runs the executable in its own mount namespace, so
CNI_PATH and the files that the executable needs must exist there under the same paths as on the node.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from nodenet.cni import jsontext
from nodenet.cni.child import run
from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Lease
from nodenet.cni.prevresult import PrevResult
from nodenet.cni.request import Request
from nodenet.cni.routes import PodRoute
from nodenet.endpoint import IPAddress

log = logging.getLogger("nodenet.cni")
# The versions with the same form of result: lists of ips and routes.
_READABLE = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# Seconds. The launcher waits 120 s for the agent: a hanging ADD and the DEL that undoes it take less together.
LIMIT_SECONDS = 50.0
_DNS = ("nameservers", "domain", "search", "options")


@dataclass(frozen=True, slots=True)
class Address:
    """An address from the delegate. `gateway` is None if it named none."""

    address: IPv4Interface | IPv6Interface
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of the delegate's ADD: at least one address."""

    addresses: tuple[Address, ...]
    routes: tuple[PodRoute, ...]
    dns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delegate:
    """The IPAM plugin of one attachment, or of a whole network for GC and STATUS (without container fields). `path`
    is CNI_PATH, `args` is CNI_ARGS."""

    kind: str
    path: str
    stdin: bytes
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    @classmethod
    def of(cls, kind: str, request: Request) -> Delegate:
        args = ";".join(f"{key}={value}" for key, value in request.args.items())
        return cls(kind, request.path, request.stdin, request.container_id, request.netns, request.ifname, args)

    def to_json(self) -> str:
        """For the endpoint's record: everything needed for a DEL that no runtime requested."""
        stdin = self.stdin.decode(errors="surrogateescape")
        return json.dumps([self.kind, self.path, stdin, self.container_id, self.netns, self.ifname, self.args])

    @classmethod
    def from_json(cls, text: str) -> Delegate:
        """Raises ValueError for text that `to_json` did not write."""
        fields = json.loads(text)
        if not isinstance(fields, list) or len(fields) != 7 or any(not isinstance(item, str) for item in fields):
            raise ValueError("not a delegation")
        kind, path, stdin, *others = fields
        return cls(kind, path, stdin.encode(errors="surrogateescape"), *others)

    def executable(self) -> str:
        """The first file of that name in CNI_PATH. Raises CniError: 4 without CNI_PATH, else 2."""
        folders = [folder for folder in self.path.split(":") if folder]
        if not folders:
            message = f"CNI_PATH: required to find the IPAM plugin {self.kind!r}"
            raise CniError(Code.BAD_ENVIRONMENT, message)
        for folder in folders:
            with suppress(OSError):
                if stat.S_ISREG(os.stat(f"{folder}/{self.kind}").st_mode):  # noqa: PTH116 - follows links, as Path does
                    return f"{folder}/{self.kind}"
        message = f"ipam.type: {json.dumps(self.kind)} is neither host-local nor nodenet, nor an executable in CNI_PATH"
        raise CniError(Code.UNSUPPORTED_FIELD, f"{message} ({self.path})")

    def add(self) -> Answer:
        """Raises CniError: the delegate's own error, or code 107 if its result is invalid."""
        return self._read(self._call("ADD"))

    def delete(self) -> None:
        """Raises CniError."""
        self._call("DEL")

    def check(self) -> None:
        """Raises CniError."""
        self._call("CHECK")

    def collect(self) -> None:
        """GC: the list of valid attachments is in the configuration. Raises CniError."""
        self._call("GC")

    def status(self) -> None:
        """Raises CniError; code 50 if the executable does not exist, because then no ADD can succeed."""
        try:
            self.executable()
        except CniError as error:
            raise CniError(Code.NOT_AVAILABLE, str(error)) from error
        self._call("STATUS")

    def undo(self) -> None:
        """DEL after a failed ADD. A failure here must not hide why the ADD failed."""
        try:
            self.delete()
        except CniError as error:
            log.warning("while undoing an ADD: IPAM plugin %s: %s", self.kind, error)

    def _call(self, verb: str) -> bytes:
        status, out = run(self.executable(), self._environment(verb), self.stdin, LIMIT_SECONDS)
        if status != 0:
            raise self._error(verb, status, out)
        return out

    def _environment(self, verb: str) -> dict[str, str]:
        """The environment of our own call. In the agent, variables that are not CNI's (such as PATH) are the agent's
        own: the launcher does not pass them on."""
        ours = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": self.args,
            "CNI_PATH": self.path,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
        return inherited | {name: value for name, value in ours.items() if value}

    def _error(self, verb: str, status: int, out: bytes) -> CniError:
        """The delegate's error unchanged, including its code; an error of ours if it is not in the form of the
        specification."""
        with suppress(ValueError):
            body = jsontext.loads(out)
            if isinstance(body, dict) and type(body.get("code")) is int and isinstance(body.get("msg"), str):
                return CniError(body["code"], body["msg"], str(body.get("details") or ""))
        ended = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        return self._failed(verb, f"{ended} without an error result: {_shown(out)}")

    def _failed(self, verb: str, message: str) -> CniError:
        return CniError(Code.DELEGATE_FAILED, f"IPAM plugin {self.kind}: {verb}: {message}")

    def _read(self, out: bytes) -> Answer:
        try:
            body = jsontext.loads(out)
        except ValueError as error:
            raise self._failed("ADD", f"its result is not JSON: {_shown(out)}") from error
        if not isinstance(body, dict):
            raise self._failed("ADD", f"its result is not an object: {_shown(out)}")
        # Like libcni, treat a result without a version as one of the configuration's version.
        if body.get("cniVersion", _READABLE[-1]) not in _READABLE:
            raise self._failed("ADD", f"its result is of version {body['cniVersion']!r}")
        if not isinstance(ips := body.get("ips") or [], list):
            raise self._failed("ADD", "its result.ips is not a list")
        # The delegate does not know the interfaces, so ignore its indexes.
        plain = [
            {key: value for key, value in item.items() if key != "interface"} if isinstance(item, dict) else item
            for item in ips
        ]
        try:
            found = PrevResult.read({"ips": plain, "routes": body.get("routes"), "dns": body.get("dns")})
        except ValueError as error:
            raise self._failed("ADD", f"its result{error}") from error
        if not found.addresses:
            raise self._failed("ADD", "its result has no address")
        dns = found.raw.get("dns") or {}
        addresses = tuple(Address(entry.address, entry.gateway) for entry in found.addresses)
        return Answer(addresses, found.routes, {name: dns[name] for name in _DNS if dns.get(name)})


def lease(conf: NetConf, request: Request, undo: ExitStack) -> tuple[NetConf, list[Lease]]:
    """Call ADD of the configuration's delegate. Returns its addresses, and the configuration with its routes and DNS.
    `undo` releases the addresses. Raises CniError.

    If the node is the pods' gateway and the delegate names no gateway, the gateway is the first address of the subnet,
    as in the reference's bridge plugin.
    """
    plugin = Delegate.of(conf.delegate, request)
    plugin.executable()
    # Register this before the call: a delegate that is killed midway may have assigned an address.
    undo.callback(plugin.undo)
    answer = plugin.add()
    leases = [
        Lease(entry.address, entry.gateway or (_first(entry) if conf.is_gateway else None), number)
        for number, entry in enumerate(answer.addresses)
    ]
    return replace(conf, delegated_routes=answer.routes, dns=conf.dns or answer.dns), leases


def _first(entry: Address) -> IPAddress:
    return entry.address.network.network_address + 1


def _shown(out: bytes) -> str:
    return repr(out[:200].decode(errors="replace"))
