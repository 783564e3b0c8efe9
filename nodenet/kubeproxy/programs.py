"""Writes Services into the kernel of the current network namespace with the system's programs, as kube-proxy does.

One writer for each mode and IP family. It starts in a namespace without kube-proxy's rules, and keeps the Services that
it wrote, so that it writes differences. A failed program raises: the process then starts again from nothing.
"""

from __future__ import annotations

import logging
import subprocess
from typing import Protocol

from nodenet.errors import BadInputError, CannotRunError
from nodenet.kubeproxy import iptables, ipvs, nftables
from nodenet.kubeproxy.model import Network, Services

log = logging.getLogger(__name__)

_TIMEOUT = 60.0
# Lines of input and errors in the message of a failed program.
_SHOWN = 5


class Writer(Protocol):
    """Writes the Services of one IP family."""

    def write(self, network: Network, services: Services) -> None:
        """Make them the Services in the kernel. Raises CannotRunError."""


class IptablesWriter:
    def __init__(self) -> None:
        self._held: tuple[Network, Services] | None = None

    def write(self, network: Network, services: Services) -> None:
        program = "iptables-restore" if network.version == 4 else "ip6tables-restore"
        restore = [program, "--noflush", "--counters", "-w", "5"]
        if self._held is None:
            run(restore, iptables.jumps(network))
        held = self._held[1] if self._held is not None and self._held[0] == network else None
        run(restore, iptables.render(network, services, held))
        self._held = network, services


class NftablesWriter:
    def __init__(self) -> None:
        self._held: tuple[Network, Services] | None = None

    def write(self, network: Network, services: Services) -> None:
        if self._held is not None and self._held[0] != network:
            # The fixed rules depend on the network: make the table again, in one transaction.
            run(["nft", "-f", "-"], f"delete table {nftables.table(network)}\n{nftables.render(network, services)}")
        else:
            held = self._held[1] if self._held is not None else None
            run(["nft", "-f", "-"], nftables.render(network, services, held))
            if held is not None:
                run(["nft", "-f", "-"], nftables.stale_chains(network, services, held))
        self._held = network, services


class IpvsWriter:
    def __init__(self) -> None:
        self._held: Services | None = None
        self._network: Network | None = None

    def write(self, network: Network, services: Services) -> None:
        if self._network not in (None, network):
            raise CannotRunError("the node's addresses changed: virtual servers are made again")
        run(["ipset", "restore", "-exist"], ipvs.sets(network, services, self._held))
        run(["ip", "-batch", "-"], ipvs.devices(network, services, self._held))
        run(["ipvsadm", "-R"], ipvs.virtual_servers(network, services, self._held))
        if self._held is None:
            program = "iptables-restore" if network.version == 4 else "ip6tables-restore"
            run([program, "--noflush"], ipvs.rules(network))
        self._held, self._network = services, network


_WRITERS: dict[str, type[Writer]] = {"iptables": IptablesWriter, "nftables": NftablesWriter, "ipvs": IpvsWriter}


def writer(mode: str) -> Writer:
    """Raises BadInputError for an unknown mode."""
    if mode not in _WRITERS:
        raise BadInputError(f"mode: expected one of {', '.join(_WRITERS)}, got {mode!r}")
    return _WRITERS[mode]()


def run(command: list[str], text: str) -> None:
    """Run a program with `text` as its input; nothing if that is empty. Raises CannotRunError with its message."""
    if not text:
        return
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise CannotRunError(f"{command[0]}: it is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"{command[0]}: not finished after {_TIMEOUT:g} s") from error
    if done.returncode != 0:
        log.error("%s failed with this input:\n%s", " ".join(command), text)
        words = "; ".join(done.stderr.strip().splitlines()[:_SHOWN])
        raise CannotRunError(f"{' '.join(command)}: exit status {done.returncode}: {words}")
