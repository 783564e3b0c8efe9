"""One call of the plugin: verb, environment and standard input, validated as the specification requires."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nodenet.cni.errors import CniError, Code
from nodenet.endpoint import ObjectRef

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
# Variables that each verb requires in addition to CNI_COMMAND (SPEC.md 1.1.0, section 2).
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", re.ASCII)
# The file name of a record contains the container id, the interface name and a suffix, and has at most 255 bytes.
_CONTAINER_ID_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Request:
    """A validated call. `netns` is "" if a DEL has none; `args` are the pairs of CNI_ARGS; `path` is CNI_PATH, which
    only other IPAM plugins need."""

    verb: str
    stdin: bytes
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    @property
    def pod(self) -> ObjectRef:
        """The pod that the kubelet names in CNI_ARGS; empty with other runtimes."""
        return ObjectRef(self.args.get("K8S_POD_NAMESPACE", ""), self.args.get("K8S_POD_NAME", ""))

    @property
    def pod_uid(self) -> str:
        return self.args.get("K8S_POD_UID", "")


def parse(environment: Mapping[str, str], stdin: bytes) -> Request:
    """Validate the environment. Raises CniError with code 4 that names the variable."""
    verb = environment.get("CNI_COMMAND", "")
    if verb not in VERBS:
        raise _bad(f"CNI_COMMAND: expected one of {', '.join(VERBS)}, got {verb!r}")
    for name in _REQUIRED.get(verb, ()):
        if not environment.get(name):
            raise _bad(f"{name}: required for {verb}")
    container_id, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if container_id and (not _CONTAINER_ID.fullmatch(container_id) or len(container_id) > _CONTAINER_ID_LENGTH):
        raise _bad(
            f"CNI_CONTAINERID: expected at most {_CONTAINER_ID_LENGTH} letters, digits, '_', '.', '-', "
            f"the first a letter or digit, got {container_id!r}"
        )
    if ifname:
        _check_ifname(ifname)
    netns = environment.get("CNI_NETNS", "")
    try:
        netns.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise _bad(f"CNI_NETNS: expected the path of a network namespace, got {netns!r}") from None
    if "\0" in netns:
        raise _bad(f"CNI_NETNS: expected the path of a network namespace, got {netns!r}")
    return Request(
        verb=verb,
        stdin=stdin,
        container_id=container_id,
        netns=netns,
        ifname=ifname,
        args=_args(environment.get("CNI_ARGS", "")),
        path=environment.get("CNI_PATH", ""),
    )


def _check_ifname(name: str) -> None:
    """The kernel's rule (dev_valid_name), and only printable ASCII."""
    if len(name) > 15 or name in (".", "..") or re.search(r"[/:\s]|[^\x21-\x7e]", name):
        raise _bad(f"CNI_IFNAME: expected 1-15 characters without '/', ':' or spaces, got {name!r}")


def _args(text: str) -> dict[str, str]:
    """CNI_ARGS: "KEY=VALUE;KEY=VALUE". Unknown keys are kept even without IgnoreUnknown, because other plugins may
    read them."""
    found = {}
    for pair in filter(None, text.split(";")):
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise _bad(f"CNI_ARGS: expected KEY=VALUE pairs joined by ';', got {pair!r}")
        found[key] = value
    return found


def _bad(message: str) -> CniError:
    return CniError(Code.BAD_ENVIRONMENT, message)
