"""The kernel features that the agent uses: eBPF, and the destruction of sockets."""

from __future__ import annotations

from nodenet.bpf import probe
from nodenet.bpf.probe import Feature
from nodenet.link.sockdiag import SockDiag
from nodenet.model import Protocol

SOCK_DESTROY = "SOCK_DESTROY for UDP"


def features() -> list[Feature]:
    """Probe the kernel. Raises CannotRunError without CAP_BPF."""
    return [*probe.features(), _sock_destroy()]


def _sock_destroy() -> Feature:
    try:
        with SockDiag() as diag:
            available = diag.can_destroy(Protocol.UDP)
    except OSError:
        # Without sock_diag the kernel does not have this netlink protocol.
        available = False
    return Feature(
        SOCK_DESTROY,
        available,
        needed=False,
        purpose="connected UDP sockets end when their backend leaves the Service",
        without="they stay with a backend that is gone (CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY give it)",
    )
