"""One rtnetlink socket in one namespace, and what every other module here needs of it.

A `Link` belongs to the thread that opened it (pyroute2 runs a private event loop per thread) and must not be used on
a thread whose asyncio loop is running: call it through asyncio.to_thread or from a worker thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodenet.errors import CannotRunError
from nodenet.link import netns

_IFF_UP = 1


class LinkError(CannotRunError):
    """The kernel refused a request; the message names the object. `code` is the errno."""

    def __init__(self, doing: str, code: int) -> None:
        super().__init__(f"{doing}: {os.strerror(code)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as the kernel shows it. `kind` is "" for physical ones; `master` and `peer` are indexes or 0."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    running: bool
    master: int
    peer: int
    port_state: int
    hairpin: bool


class Link:
    """An open rtnetlink socket. `target` is a namespace's name, path or file descriptor; None: the current one."""

    def __init__(self, target: netns.Target | None = None) -> None:
        _check_thread()
        sock = netns.open_socket(target, socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
        self.ip: Any = IPRoute(fileno=sock.detach())

    def close(self) -> None:
        self.ip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, which: str | int) -> Interface | None:
        """One interface by name or index; None when there is none."""
        key = {"index": which} if isinstance(which, int) else {"ifname": which}
        try:
            found = self.ip.link("get", **key)
        except NetlinkError as error:
            if error.code in (errno.ENODEV, errno.EINVAL):
                return None
            raise LinkError(f"cannot read interface {which}", error.code) from error
        return _interface(found[0])

    def require(self, which: str | int) -> Interface:
        """Like `get`, but LinkError when there is none."""
        if (found := self.get(which)) is None:
            raise LinkError(f"interface {which}", errno.ENODEV)
        return found

    def all(self) -> list[Interface]:
        """Every interface of the namespace, by index."""
        with refusing("cannot list interfaces"):
            return [_interface(message) for message in self.ip.get_links()]

    def set(self, which: int | str, **attributes: Any) -> None:
        """Change an interface (state="up", mtu, address, master, ifname...: pyroute2's names)."""
        key = {"index": which} if isinstance(which, int) else {"index": self.require(which).index}
        with refusing(f"cannot set {', '.join(attributes)} of interface {which}"):
            self.ip.link("set", **key, **attributes)

    def delete(self, which: int | str) -> bool:
        """Delete an interface; False when it was gone already. A veth takes its peer along."""
        found = self.get(which)
        if found is None:
            return False
        try:
            self.ip.link("del", index=found.index)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return False
            raise LinkError(f"cannot delete interface {found.name}", error.code) from error
        return True


@contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Turn pyroute2's exception into a LinkError that says what was being done to what."""
    try:
        yield
    except NetlinkError as error:
        raise LinkError(doing, error.code) from error


def _check_thread() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("Link: not on a thread whose event loop runs; use asyncio.to_thread")


def _interface(message: Any) -> Interface:
    info = message.get_attr("IFLA_LINKINFO")
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge" else None
    return Interface(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        running=message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer=message.get_attr("IFLA_LINK") or 0,
        port_state=(port.get_attr("IFLA_BRPORT_STATE") or 0) if port else 0,
        hairpin=bool(port.get_attr("IFLA_BRPORT_MODE")) if port else False,
    )
