"""Names and places of everything a lab makes: from a name alone `lab down` finds what to remove. Pure.

/run/nodenet/lab/<lab>/            the lab's folder; <node>/ inside it is that node's run_dir
/run/netns/nn.<lab>.fabric         the network that joins the nodes
/run/netns/nn.<lab>.<node>         a node
/run/netns/nn.<lab>.<ns>.<pod>     a pod
<cgroup2>/nodenet.<lab>/<node>/{system,pods/<ns>.<pod>}
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nodenet.errors import BadInputError

RUN_ROOT = Path("/run/nodenet/lab")
NETNS_ROOT = Path("/run/netns")
FABRIC = "fabric"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# sun_path holds 108 bytes: /run/nodenet/lab/<lab>/node200/agent.sock has to fit with room to spare.
_MAX_LAB_NAME = 32
# NAME_MAX of Linux file systems, cgroup2 and nsfs files included.
_MAX_FILE_NAME = 255
_HASH_CHARS = 12


def check_lab_name(name: str) -> str:
    """`name` itself. Raises BadInputError unless it is a DNS label (no dots: they separate the parts) of 32 at most."""
    if len(name) > _MAX_LAB_NAME or not _NAME.fullmatch(name):
        raise BadInputError(
            f"lab name {name!r}: expected at most {_MAX_LAB_NAME} of a-z, 0-9 and '-', a letter or digit at both ends"
        )
    return name


def node_name(number: int) -> str:
    return f"node{number}"


def netns_prefix(lab: str) -> str:
    """Every namespace of the lab, and none of another lab's, starts with this."""
    return f"nn.{lab}."


def fabric_netns(lab: str) -> str:
    return netns_prefix(lab) + FABRIC


def node_netns(lab: str, node: str) -> str:
    return netns_prefix(lab) + node


def pod_netns(lab: str, namespace: str, pod: str) -> str:
    return shorten(f"{netns_prefix(lab)}{namespace}.{pod}")


def pod_cgroup(namespace: str, pod: str) -> str:
    return shorten(f"{namespace}.{pod}")


def cgroup_root(lab: str) -> str:
    return f"nodenet.{lab}"


def lab_dir(lab: str) -> Path:
    return RUN_ROOT / lab


def node_dir(lab: str, node: str) -> Path:
    return lab_dir(lab) / node


def netns_path(name: str) -> Path:
    return NETNS_ROOT / name


def shorten(name: str) -> str:
    """`name`, or where a file could not be called so, its start and a hash of the whole."""
    if len(name) <= _MAX_FILE_NAME:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()[:_HASH_CHARS]
    return f"{name[: _MAX_FILE_NAME - _HASH_CHARS - 1]}.{digest}"
