"""What this kernel offers to the whole agent: eBPF, and what it can do to sockets."""

from __future__ import annotations

from nodenet.bpf import probe
from nodenet.bpf.probe import Feature
from nodenet.link.sockdiag import SockDiag
from nodenet.model import Protocol

SOCK_DESTROY = "SOCK_DESTROY for UDP"


def features() -> list[Feature]:
    """Ask the kernel. Raises CannotRunError without CAP_BPF."""
    return [*probe.features(), _sock_destroy()]


def _sock_destroy() -> Feature:
    try:
        with SockDiag() as diag:
            available = diag.can_destroy(Protocol.UDP)
    except OSError:
        # A kernel without sock_diag has no such netlink protocol.
        available = False
    return Feature(
        SOCK_DESTROY,
        available,
        needed=False,
        purpose="connected UDP sockets end when their backend leaves the Service",
        without="they stay with a backend that is gone (CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY give it)",
    )
