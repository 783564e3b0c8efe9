"""The node's links, through one worker thread that keeps a netlink socket open.

The kernel may hold its lock for tens of ms while it takes a namespace apart: the event loop must not wait for that. One
hop to the worker costs as much as what it does there, so what an ADD needs is one call.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from nodenet.bpf import loader
from nodenet.link import addresses, netns, routes, tc
from nodenet.link.handle import Link
from nodenet.model import Endpoint, IPAddress, IPNetwork

log = logging.getLogger(__name__)

# asm-generic/socket.h (Linux 5.14)
_SO_NETNS_COOKIE = 71
_HOOKS = {"endpoint_egress": tc.Hook.INGRESS, "endpoint_ingress": tc.Hook.EGRESS}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Admitted:
    """`cookie` is 0 where the kernel does not tell it."""

    cookie: int
    addresses: frozenset[IPAddress]


class Host:
    """Asynchronous face of `nodenet.link` for this process's own namespace."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="link")
        self._link: Link | None = None

    async def _call(self, function: Callable[Concatenate[Link, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def run() -> T:
            if self._link is None:
                self._link = Link()
            return function(self._link, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._worker, run)

    def close(self) -> None:
        def run() -> None:
            if self._link is not None:
                self._link.close()

        self._worker.submit(run).result()
        self._worker.shutdown()

    async def attach(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int:
        """Put both programs on the endpoint's veth; how many were not right already."""
        return await self._call(_attach, endpoint.host_ifindex, programs)

    async def admit(self, endpoint: Endpoint, programs: Mapping[str, int]) -> Admitted:
        """What an ADD needs: both programs on the new veth, the cookie of the pod's namespace, the node's addresses."""
        return await self._call(_admit, endpoint, programs)

    async def exists(self, endpoint: Endpoint) -> bool:
        """Whether the veth is still there under its index and name."""
        return await self._call(_exists, endpoint)

    async def local_addresses(self) -> frozenset[IPAddress]:
        """Every address of this node's own namespace, without loopback's."""
        return await self._call(_local_addresses)

    async def sync_routes(self, desired: Mapping[IPNetwork, IPAddress], own: Iterable[IPAddress]) -> routes.SyncResult:
        """Routes to the other nodes' pod networks, over the interface that has this node's own address."""
        return await self._call(_sync_routes, dict(desired), frozenset(own))


def _attach(link: Link, ifindex: int, programs: Mapping[str, int]) -> int:
    have = {(entry.hook, entry.program_id) for entry in tc.attached(link, ifindex)}
    changed = 0
    for name, hook in _HOOKS.items():
        fd = programs[name]
        if (hook, loader.program_id(fd)) not in have:
            tc.attach(link, ifindex, hook, fd, name)
            changed += 1
    return changed


def _admit(link: Link, endpoint: Endpoint, programs: Mapping[str, int]) -> Admitted:
    wanted = [tc.Program(hook, programs[name], name) for name, hook in _HOOKS.items()]
    tc.attach_all(link, endpoint.host_ifindex, wanted)
    return Admitted(netns_cookie(endpoint.netns), _local_addresses(link))


def _exists(link: Link, endpoint: Endpoint) -> bool:
    found = link.get(endpoint.host_ifindex)
    return found is not None and found.name == endpoint.host_ifname


def _local_addresses(link: Link) -> frozenset[IPAddress]:
    return frozenset(entry.ip for entry in addresses.local(link) if not entry.ip.is_loopback)


def _sync_routes(link: Link, desired: Mapping[IPNetwork, IPAddress], own: frozenset[IPAddress]) -> routes.SyncResult:
    device = next((entry.ifindex for entry in addresses.local(link) if entry.ip in own), None)
    if device is None:
        words = f"no interface has one of this node's addresses ({', '.join(sorted(map(str, own))) or 'none is known'})"
        return routes.SyncResult(failed=dict.fromkeys(desired, words))
    return routes.sync_routes(link, desired, device)


def netns_cookie(path: str) -> int:
    """The kernel's cookie of a network namespace (events of socket programs carry it); 0 where it cannot be told."""
    try:
        with netns.open_socket(path, socket.AF_INET, socket.SOCK_DGRAM, 0) as probe:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    except OSError as error:
        log.info("namespace %s: no cookie: %s", path, error)
        return 0
