"""Removes rules that the reference plugin created before the node moved to ours. Our own files have no record of them.

With `ipMasq` and iptables, the reference `bridge` plugin creates a chain per container in table nat, named "CNI-" and
the beginning of a digest of network and container id, and a rule in POSTROUTING per address that jumps to it
(containernetworking/plugins, pkg/ip/ipmasq_linux.go and pkg/utils). We remove them with the same program: `iptables`,
of either backend.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable

from nodenet.cni.child import run
from nodenet.cni.errors import CniError
from nodenet.endpoint import IPAddress

log = logging.getLogger("nodenet.cni")
_CHAIN_LENGTH = 28
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
# Seconds: our limit per call, and how long the program waits for the xtables lock.
_LIMIT, _WAIT = 20.0, "10"


def masquerade_chain(network: str, container_id: str) -> str:
    """The name of the chain, which is the same for all interfaces of a container."""
    return ("CNI-" + hashlib.sha512((network + container_id).encode()).hexdigest())[:_CHAIN_LENGTH]


def remove_masquerade(network: str, container_id: str, addresses: Iterable[IPAddress]) -> None:
    """Remove a container's chain and the rules that jump to it, for the families of its addresses. Idempotent. Never
    raises, because a missing program must not make every DEL fail: problems are logged."""
    chain = masquerade_chain(network, container_id)
    for version in sorted({address.version for address in addresses}):
        program = _PROGRAMS[version]
        try:
            _remove(program, chain)
        except FileNotFoundError:
            log.warning(
                "network %s: container %s: chain %s may be left in table nat: %s is not installed",
                *(network, container_id, chain, program),
            )
        except (CniError, OSError) as error:
            log.warning("network %s: container %s: chain %s: %s", network, container_id, chain, error)


def _remove(program: str, chain: str) -> None:
    found = _find(program)
    # An error usually means that the chain does not exist, or that there is no table nat.
    if _call(found, "-w", _WAIT, "-t", "nat", "-S", chain, quiet=True)[0] != 0:
        return
    status, out = _call(found, "-w", _WAIT, "-t", "nat", "-S", "POSTROUTING")
    rules = [line for line in out.decode(errors="surrogateescape").splitlines() if line.endswith(f" -j {chain}")]
    # As one transaction and in the program's own syntax: rules that others add meanwhile are not touched.
    wanted = ["*nat", *(line.replace("-A ", "-D ", 1) for line in rules), f"-F {chain}", f"-X {chain}", "COMMIT", ""]
    stdin = "\n".join(wanted).encode(errors="surrogateescape")
    if status == 0:
        status, _ = _call(_find(f"{program}-restore"), "-w", _WAIT, "--noflush", stdin=stdin)
    if status != 0:
        raise OSError(f"{program}: exit status {status}")


def _find(program: str) -> str:
    """Raises FileNotFoundError. Also searches sbin, because some runtimes start plugins with a short PATH."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"):
        if folder and os.access(f"{folder}/{program}", os.X_OK):
            return f"{folder}/{program}"
    raise FileNotFoundError(program)


def _call(program: str, *words: str, stdin: bytes = b"", quiet: bool = False) -> tuple[int, bytes]:
    return run(program, os.environ, stdin, _LIMIT, words, quiet=quiet)
