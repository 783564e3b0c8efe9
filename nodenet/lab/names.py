"""Names and paths of everything that a lab creates. They follow from the lab's name, so `lab down` finds everything
that it must remove. Pure.

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
# sun_path has 108 bytes, and /run/nodenet/lab/<lab>/node200/agent.sock must fit.
_MAX_LAB_NAME = 32
# NAME_MAX of Linux file systems, cgroup2 and nsfs files included.
_MAX_FILE_NAME = 255
_HASH_CHARS = 12


def check_lab_name(name: str) -> str:
    """Returns `name`. Raises BadInputError unless it is a DNS label of at most 32 characters. It must have no dots,
    because dots separate the parts of names."""
    if len(name) > _MAX_LAB_NAME or not _NAME.fullmatch(name):
        raise BadInputError(
            f"lab name {name!r}: expected at most {_MAX_LAB_NAME} of a-z, 0-9 and '-', a letter or digit at both ends"
        )
    return name


def node_name(number: int) -> str:
    return f"node{number}"


def netns_prefix(lab: str) -> str:
    """The prefix of all namespaces of this lab, and of no others."""
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
    """`name`, or if it is too long for a file name, its start and a hash of the whole name."""
    if len(name) <= _MAX_FILE_NAME:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()[:_HASH_CHARS]
    return f"{name[: _MAX_FILE_NAME - _HASH_CHARS - 1]}.{digest}"
