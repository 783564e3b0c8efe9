"""CHECK (SPEC.md, section 2): compares the attachment with prevResult, the kernel's state and our own files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nodenet.cni import wire
from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store
from nodenet.cni.prevresult import PrevAddress, PrevResult
from nodenet.cni.records import Records
from nodenet.cni.request import Request
from nodenet.cni.routes import PodRoute
from nodenet.endpoint import IPNetwork
from nodenet.link import addresses, bridge, nft, routes, sysctl
from nodenet.link.handle import Interface, Link

_V6_METRIC = 1024


def check(node: Link, pod: Link, records: Records, conf: NetConf, request: Request) -> None:
    """Raises CniError with code 106 that lists all differences, or the error of another IPAM plugin."""
    if conf.delegate:
        from nodenet.cni.delegate import Delegate

        Delegate.of(conf.delegate, request).check()
    problems = list(Checker(node, pod, records, conf, request).problems())
    if problems:
        who = f"container {request.container_id} {request.ifname}"
        message = f"network {conf.name}: CHECK: {who}: {problems[0]}"
        raise CniError(Code.CHECK_FAILED, message, "; ".join(problems[1:]))


class Checker:
    """One CHECK. Later plugins of the chain may add to prevResult, or change attributes without reporting them: the
    MTU (tuning), the table of a route (sbr). So check only what we created and what later plugins must not change."""

    def __init__(self, node: Link, pod: Link, records: Records, conf: NetConf, request: Request) -> None:
        assert conf.prev is not None
        self._node, self._pod, self._records, self._conf, self._request = node, pod, records, conf, request
        self._prev: PrevResult = conf.prev
        self._owner = Owner(request.container_id, request.ifname)

    def problems(self) -> Iterator[str]:
        """Yields a sentence for each difference."""
        mine = self._prev.inside(self._request.netns, self._owner.ifname)
        if mine < 0:
            yield f"prevResult names no interface {self._owner.ifname} in {self._request.netns}"
            return
        inside = self._pod.get(self._owner.ifname)
        if inside is None:
            yield f"no interface {self._owner.ifname} in {self._request.netns}"
        else:
            yield from self._inside(inside, mine)
        yield from self._outside(inside)
        yield from self._files(mine)
        yield from self._rules(mine, inside)

    def _ours(self, mine: int) -> list[PrevAddress]:
        return [entry for entry in self._prev.addresses if entry.interface == mine]

    def _inside(self, inside: Interface, mine: int) -> Iterator[str]:
        wanted = self._prev.interfaces[mine]
        if wanted.mac and inside.mac != wanted.mac:
            yield f"interface {inside.name} has MAC {inside.mac}, prevResult says {wanted.mac}"
        if not inside.up and not self._conf.container_interface_down:
            yield f"interface {inside.name} is down"
        have = {entry.interface for entry in addresses.local(self._pod, inside.index)}
        for entry in self._ours(mine):
            if entry.address not in have:
                yield f"interface {inside.name} has no address {entry.address}"
        # Search all tables: a later plugin (sbr) may have moved the routes.
        present = {(route.network, route.gateway, route.metric) for route in routes.list_routes(self._pod, None)}
        for route in map(self._completed, self._prev.routes):
            if self._expected(route, mine) not in present:
                via = f" via {route.gateway}" if route.gateway else ""
                yield f"no route to {route.network}{via}"

    def _completed(self, route: PodRoute) -> PodRoute:
        """Results before 1.1.0 do not contain a route's priority: take it from the configuration."""
        for entry in self._conf.ipam.routes if self._conf.ipam else ():
            if entry.network == route.network and (entry.gateway or route.gateway) == route.gateway:
                return replace(route, priority=route.priority or entry.priority)
        return route

    def _expected(self, route: PodRoute, mine: int) -> tuple[IPNetwork, object, int]:
        gateway = route.gateway
        if gateway is None:
            family = route.network.version
            gateway = next((e.gateway for e in self._ours(mine) if e.gateway and e.gateway.version == family), None)
        metric = route.priority or (_V6_METRIC if route.network.version == 6 else 0)
        return route.network, gateway, metric

    def _outside(self, inside: Interface | None) -> Iterator[str]:
        conf, node = self._conf, self._node
        over = node.get(conf.bridge)
        if over is None or over.kind != "bridge":
            yield f"no bridge {conf.bridge}"
            return
        if not over.up:
            yield f"bridge {conf.bridge} is down"
        ends = [e for e in self._prev.interfaces if not e.sandbox and e.name != conf.bridge]
        host = next(
            (found for e in ends if (found := node.get(e.name)) and inside and found.peer == inside.index), None
        )
        if host is None:
            names = ", ".join(e.name for e in ends) or "none"
            yield f"no veth on the node leads to {self._owner.ifname} (prevResult: {names})"
            return
        wanted = next(e for e in ends if e.name == host.name)
        if wanted.mac and host.mac != wanted.mac:
            yield f"interface {host.name} has MAC {host.mac}, prevResult says {wanted.mac}"
        if host.master != over.index:
            yield f"interface {host.name} is not a port of bridge {conf.bridge}"
            return
        yield from self._port(host)
        if conf.is_gateway:
            yield from self._gateways(over)

    def _port(self, host: Interface) -> Iterator[str]:
        conf = self._conf
        if not conf.container_interface_down and host.port_state != bridge.FORWARDING:
            yield f"bridge port {host.name} does not forward"
        if conf.hairpin and not host.hairpin:
            yield f"bridge port {host.name} is not in hairpin mode"
        if conf.port_isolation and not bridge.is_isolated(self._node, host.index):
            yield f"bridge port {host.name} is not isolated"
        if conf.vlan or conf.trunk:
            found = bridge.vlans(self._node, host.index)
            if conf.vlan and not found.get(conf.vlan):
                yield f"bridge port {host.name} is not in VLAN {conf.vlan}"
            missing = [number for number in conf.trunk if number not in found]
            if missing:
                yield f"bridge port {host.name} does not carry VLAN {missing[0]}"

    def _gateways(self, over: Interface) -> Iterator[str]:
        on = self._node.get(f"{over.name}.{self._conf.vlan}") if self._conf.vlan else over
        have = {entry.ip for entry in addresses.local(self._node, on.index)} if on else set()
        for entry in self._prev.addresses:
            if entry.gateway and entry.gateway not in have and self._is_ours(entry):
                yield f"bridge {over.name} has no address {entry.gateway}"
            key = "ipv4/ip_forward" if entry.address.version == 4 else "ipv6/conf/all/forwarding"
            if sysctl.read(key) == "0":
                yield f"net/{key} is 0: the node does not forward"

    def _is_ours(self, entry: PrevAddress) -> bool:
        return entry.interface == self._prev.inside(self._request.netns, self._owner.ifname)

    def _files(self, mine: int) -> Iterator[str]:
        conf, owner = self._conf, self._owner
        held = [entry.address.ip for entry in self._ours(mine)]
        if conf.ipam:
            store = Store(conf.ipam.data_dir, conf.name)
            for address in held:
                try:
                    holder = store.owner(address)
                except FileNotFoundError:
                    yield f"address {address} is not leased"
                    continue
                if holder not in (owner, Owner(owner.container_id, "")):
                    yield f"address {address} is leased to container {holder.container_id} {holder.ifname}"
        if not any(e.name == wire.host_ifname(owner) for e in self._prev.interfaces):
            # The reference plugin created this attachment, so it has no record.
            return
        try:
            record = self._records.get(owner)
        except ValueError as error:
            yield f"endpoint file: {error}"
            return
        if record is None:
            yield "no endpoint file"
        elif set(record.endpoint.ips) != set(held):
            yield f"endpoint file: addresses are {', '.join(map(str, record.endpoint.ips))}"

    def _rules(self, mine: int, inside: Interface | None) -> Iterator[str]:
        conf = self._conf
        for entry in self._ours(mine) if conf.ip_masq else ():
            if not nft.is_masqueraded(conf.name, entry.address.network, entry.address.ip):
                yield f"address {entry.address.ip} is not masqueraded"
        if conf.mac_spoof_check and inside and not nft.checks_source_mac(wire.host_ifname(self._owner)):
            yield f"interface {wire.host_ifname(self._owner)}: source MACs are not checked"
