"""Works on the node's links in one worker thread, which keeps a netlink socket open.

The kernel may hold its netlink lock for tens of ms while it removes a namespace, and the event loop must not wait for
that. The thread that handles an ADD does its work itself (`admit`), because the switch to another thread would cost as
much as the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec, TypeVar

from nodenet.agent import attachment, ports
from nodenet.bpf import loader
from nodenet.cni.hooks import Wired
from nodenet.link import addresses, routes, uplink
from nodenet.link.handle import Interface, Link, LinkError
from nodenet.model import Endpoint, IPAddress, IPNetwork

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Admitted:
    """An endpoint with attached programs, and with the id and cookie of its namespace. `gateways`: addresses that the
    node is known to have."""

    endpoint: Endpoint
    gateways: frozenset[IPAddress]


class Host:
    """An asynchronous interface to `nodenet.link` for this process's network namespace. `uplink_name`: the configured
    uplink, or "" to find it."""

    def __init__(self, uplink_name: str = "") -> None:
        self._uplink_name = uplink_name
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
        """Attach both programs to the endpoint's veth. Returns how many were not up to date."""
        return await self._call(attachment.attach, endpoint.host_ifindex, programs)

    async def isolate(self, endpoint: Endpoint, programs: Mapping[str, int]) -> int:
        """Attach the programs to a veth that has none of ours. Returns how many were attached."""
        return await self._call(attachment.attach_absent, endpoint.host_ifindex, programs)

    async def inspect(
        self, endpoints: Sequence[Endpoint], programs: Mapping[str, int]
    ) -> dict[Endpoint, attachment.Inspection | None]:
        """The problems of each endpoint's veth (attachment.inspect), or None if the veth is gone. Endpoints for which
        the kernel returns an error are left out."""
        return await self._call(_inspect, tuple(endpoints), programs)

    async def sync_ports(self, endpoints: Sequence[Endpoint]) -> ports.Synced:
        """Put the endpoints' veths back into their bridges (agent/ports.py)."""
        return await self._call(ports.sync, tuple(endpoints))

    async def exists(self, endpoint: Endpoint) -> bool:
        """True if the veth still exists with its index and name."""
        return await self._call(_exists, endpoint)

    async def netns_id(self, endpoint: Endpoint) -> int | None:
        """This namespace's id (nsid) of the pod's namespace; None if the veth is gone or there is no id."""
        return await self._call(_netns_id, endpoint.host_ifindex)

    async def local_addresses(self) -> frozenset[IPAddress]:
        """All addresses of this node's network namespace, except for those of the loopback interface."""
        return await self._call(_local_addresses)

    async def sync_routes(self, desired: Mapping[IPNetwork, IPAddress], own: Iterable[IPAddress]) -> routes.SyncResult:
        """Update the routes to the other nodes' pod networks, through the uplink."""
        return await self._call(_sync_routes, self._uplink_name, dict(desired), frozenset(own))

    async def run(self, function: Callable[Concatenate[Link, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function with the netlink socket, in the worker thread."""
        return await self._call(function, *args, **kwargs)

    async def uplink(self, own: Iterable[IPAddress]) -> Interface | None:
        """The interface that leads to the other nodes; None if there is none. `own`: the node's addresses in the
        API."""
        return await self._call(uplink.find, self._uplink_name, frozenset(own))


def _inspect(
    link: Link, endpoints: Sequence[Endpoint], programs: Mapping[str, int]
) -> dict[Endpoint, attachment.Inspection | None]:
    wanted = {name: loader.program_id(programs[name]) for name in attachment.HOOKS}
    found: dict[Endpoint, attachment.Inspection | None] = {}
    for endpoint in endpoints:
        try:
            found[endpoint] = attachment.inspect(link, endpoint.host_ifindex, wanted)
        except (LinkError, OSError) as error:
            log.warning("programs of %s could not be read: %s", endpoint.host_ifname, error)
    return found


def _exists(link: Link, endpoint: Endpoint) -> bool:
    found = link.get(endpoint.host_ifindex)
    return found is not None and found.name == endpoint.host_ifname


def _netns_id(link: Link, ifindex: int) -> int | None:
    found = link.get(ifindex)
    return None if found is None else found.peer_netns


def _local_addresses(link: Link) -> frozenset[IPAddress]:
    return frozenset(entry.ip for entry in addresses.local(link) if not entry.ip.is_loopback)


def admit(wired: Wired, programs: Mapping[str, int]) -> Admitted:
    """The part of an ADD before the maps are written: attach both programs to the new veth, and read the cookie and id
    of the pod's namespace. Runs in a CNI worker thread with sockets of its own."""
    attachment.attach_new(wired.node, wired.endpoint.host_ifindex, programs)
    number = _netns_id(wired.node, wired.endpoint.host_ifindex)
    endpoint = replace(wired.endpoint, netns_id=number, netns_cookie=wired.pod.netns_cookie())
    return Admitted(endpoint, wired.gateways)


def _sync_routes(
    link: Link, name: str, desired: Mapping[IPNetwork, IPAddress], own: frozenset[IPAddress]
) -> routes.SyncResult:
    device = uplink.find(link, name, own)
    if device is None:
        return routes.SyncResult(failed=dict.fromkeys(desired, no_uplink(name, own)))
    return routes.sync_routes(link, desired, device.index)


def no_uplink(name: str, own: Iterable[IPAddress]) -> str:
    """Why there is no uplink."""
    if name:
        return f"uplink: no interface has the name {name}"
    listed = ", ".join(sorted(map(str, own))) or "none is known"
    return f"no interface has one of this node's addresses ({listed}), and there is no default route"


def netns_cookie(path: str) -> int:
    """The cookie of a network namespace, which the events of socket programs contain; 0 if it cannot be read."""
    try:
        with Link(path) as link:
            return link.netns_cookie()
    except OSError as error:
        log.info("namespace %s: no cookie: %s", path, error)
        return 0
