"""Linux bridges and their ports."""

from __future__ import annotations

import errno
import secrets
import time

from nodenet.link.handle import Interface, Link, LinkError, refusing

FORWARDING = 3  # BR_STATE_FORWARDING
_IFF_PROMISC = 0x100


def ensure(link: Link, name: str, mtu: int = 0, promiscuous: bool = False) -> Interface:
    """The bridge of that name, made and brought up when it is missing; two callers at once get the same one.

    A new one gets a MAC of its own, so that it does not change with its ports. Raises LinkError (EEXIST) when an
    interface of that name is something else.
    """
    found = link.get(name)
    if found is None:
        extra = {"mtu": mtu} if mtu else {}
        try:
            with refusing(f"cannot create bridge {name}"):
                link.ip.link("add", ifname=name, kind="bridge", address=random_mac(), **extra)
        except LinkError as error:
            if error.code != errno.EEXIST:
                raise
        found = link.require(name)
    if found.kind != "bridge":
        raise LinkError(f"interface {name} is a {found.kind or 'physical interface'}, not a bridge", errno.EEXIST)
    if not found.up:
        link.set(found.index, state="up")
    if promiscuous:
        with refusing(f"cannot make bridge {name} promiscuous"):
            link.ip.link("set", index=found.index, flags=_IFF_PROMISC, change=_IFF_PROMISC)
    return found


def add_port(link: Link, bridge: int, port: int, hairpin: bool = False) -> None:
    """Join an interface to a bridge. `hairpin` lets a frame leave by the port it came in on."""
    link.set(port, master=bridge)
    if hairpin:
        with refusing(f"cannot set hairpin of interface {port}"):
            link.ip.brport("set", index=port, mode=1)


def wait_forwarding(link: Link, port: int, timeout: float = 5.0) -> None:
    """Return once the port forwards frames: the kernel opens it a little after the carrier came. LinkError in vain.

    The kernel sends no event for a port's state in every version, so it is asked, at growing intervals from 0.2 ms.
    """
    deadline, pause = time.monotonic() + timeout, 0.0002
    while (found := link.require(port)).port_state != FORWARDING:
        if time.monotonic() > deadline:
            raise LinkError(f"bridge port {found.name} did not start to forward in {timeout:g} s", errno.ETIMEDOUT)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def random_mac() -> str:
    """A locally administered unicast address."""
    return bytes([0x02, *secrets.token_bytes(5)]).hex(":")
