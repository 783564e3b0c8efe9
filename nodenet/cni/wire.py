"""Make and remove the kernel's part of an attachment: bridge, veth pair, addresses, routes, sysctls.

Every step is one function, so that plugin.py can name it, time it and fail it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_network
from pathlib import Path

from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Lease, Owner
from nodenet.cni.routes import PodRoute
from nodenet.link import addresses, announce, bridge, netns, routes, sysctl, veth
from nodenet.link.handle import Interface, Link

_IPV6 = Path("/proc/sys/net/ipv6")
# ip link: ADDR_GEN_MODE none. A bridge port needs no link-local address, and none means no DAD and MLD chatter.
_NO_ADDRESS = 1


def host_ifname(owner: Owner) -> str:
    """The node's end of an attachment's veth pair: the same name for the same owner, so that DEL needs no record."""
    digest = hashlib.blake2b(owner.text.encode(), digest_size=6).hexdigest()
    # 15 characters, the kernel's limit. Node tools leave out veth* when they look at interfaces.
    return "veth" + digest[:11]


def pod_mac(leases: Sequence[Lease]) -> str:
    """A locally administered MAC that follows from the address: whoever gets the address next has the same one, so
    no neighbour's cache is ever wrong."""
    first = leases[0].address.ip
    tail = first.packed if first.version == 4 else hashlib.blake2b(first.packed, digest_size=4).digest()
    return (b"\x0a\x58" + tail).hex(":")


def ensure_bridge(node: Link, conf: NetConf, leases: Sequence[Lease]) -> Interface:
    """The bridge, with the gateways' addresses on it and forwarding on where the configuration makes it a gateway."""
    found = bridge.ensure(node, conf.bridge, conf.mtu, conf.promiscuous)
    if not conf.is_gateway:
        return found
    present = [entry.interface for entry in addresses.local(node, found.index)]
    for lease in leases:
        if lease.address.version == 6:
            _require_ipv6(lease)
            sysctl.write(f"ipv6/conf/{conf.bridge}/disable_ipv6", 0)
            sysctl.write(f"ipv6/conf/{conf.bridge}/accept_ra", 0)
        gateway = _interface(f"{lease.gateway}/{lease.address.network.prefixlen}")
        _ensure_gateway(node, conf, found, gateway, present)
        sysctl.write("ipv4/ip_forward" if gateway.version == 4 else "ipv6/conf/all/forwarding", 1)
    return found


def create_pair(node: Link, conf: NetConf, owner: Owner, pod_netns: int, mac: str) -> Interface:
    """The veth pair, both ends down. Returns the node's end."""
    host = veth.create(node, host_ifname(owner), owner.ifname, pod_netns, peer_mac=mac, mtu=conf.mtu)
    if _IPV6.exists():
        sysctl.write(f"ipv6/conf/{host.name}/addr_gen_mode", _NO_ADDRESS)
    return host


def join_bridge(node: Link, conf: NetConf, port: Interface, to: Interface) -> None:
    """Make the node's end a port of the bridge and bring it up."""
    bridge.add_port(node, to.index, port.index, conf.hairpin)
    node.set(port.index, state="up")


def configure_pod(pod: Link, pod_netns: int, ifname: str, leases: Sequence[Lease]) -> Interface:
    """Addresses on the pod's end, which comes up."""
    interface = pod.require(ifname)
    if any(lease.address.version == 6 for lease in leases):
        netns.call(pod_netns, _pod_ipv6, ifname, leases)
    for lease in leases:
        addresses.add(pod, interface.index, lease.address)
    pod.set(interface.index, state="up")
    return interface


def add_routes(pod: Link, ifindex: int, wanted: Sequence[PodRoute]) -> None:
    """The pod's routes; a gateway outside the pod's subnets is taken as on the link, as the reference does."""
    for route in wanted:
        extra = {name: value for name in ("priority", "table", "scope") if (value := getattr(route, name)) is not None}
        metrics = {name: value for name in ("mtu", "advmss") if (value := getattr(route, name)) is not None}
        if metrics:
            extra["metrics"] = metrics
        routes.add(pod, ifindex, route.network, route.gateway, **extra)


def pod_routes(conf: NetConf, leases: Sequence[Lease]) -> list[PodRoute]:
    """The configured routes with their gateways filled in, and a default route per family where we are its gateway."""
    gateways = {lease.gateway.version: lease.gateway for lease in reversed(leases)}
    found: list[PodRoute] = []
    for route in conf.ipam.routes:
        gateway = route.gateway or gateways.get(route.network.version)
        if gateway is None:
            continue
        found.append(replace(route, gateway=gateway))
    if conf.is_default_gateway:
        for version, gateway in sorted(gateways.items()):
            default = ip_network("0.0.0.0/0" if version == 4 else "::/0")
            if all(route.network != default for route in found):
                found.append(PodRoute(default, gateway))
    return found


def settle(node: Link, port: Interface) -> None:
    """Wait until the bridge forwards for the port: a pod that starts sooner would lose its first packets."""
    bridge.wait_forwarding(node, port.index)


def tell_neighbours(pod_netns: int, interface: Interface, mac: str, leases: Sequence[Lease]) -> None:
    """Correct the caches of those who knew an address's last holder. Not needed for the address that the MAC follows
    from: its last holder had the same one."""
    derived = mac == pod_mac(leases)
    for lease in leases[1:] if derived else leases:
        address = lease.address.ip
        if isinstance(address, IPv4Address):
            announce.announce_v4(pod_netns, interface.name, mac, address)
        else:
            announce.announce_v6(pod_netns, interface.index, mac, address)


def disconnect(node: Link, owner: Owner, host_name: str) -> bool:
    """Remove the veth pair by its node's end; False when it was gone."""
    return node.delete(host_name or host_ifname(owner))


def disconnect_in(pod_netns: str, ifname: str) -> bool:
    """Remove the interface inside the pod's namespace: for pairs whose node's end has another plugin's name.

    Only a veth is touched, and never one of the node's own namespace. False when there is nothing to remove.
    """
    if not netns.is_namespace(pod_netns) or netns.inode(pod_netns) == netns.inode():
        return False
    with Link(pod_netns) as pod:
        found = pod.get(ifname)
        return found is not None and found.kind == "veth" and pod.delete(found.index)


def _ensure_gateway(
    node: Link, conf: NetConf, to: Interface, gateway: addresses.IPInterface, present: Sequence[addresses.IPInterface]
) -> None:
    """Put the gateway's address on the bridge. Another address there stays when both can live together: IPv6 networks
    that do not overlap; else forceAddress decides, as in the reference plugin."""
    if gateway in present:
        return
    for other in present:
        if other.version != gateway.version or (other.version == 6 and not other.network.overlaps(gateway.network)):
            continue
        if not conf.force_address:
            message = f"network {conf.name}: bridge {conf.bridge} has address {other}, wanted {gateway}"
            raise CniError(Code.BAD_CONFIG, message, "set forceAddress to replace it")
        addresses.remove(node, to.index, other)
    addresses.add(node, to.index, gateway)


def _pod_ipv6(ifname: str, leases: Sequence[Lease]) -> None:
    """Inside the pod's namespace: the address is ours to give, so no router may add to it and nothing may take it."""
    for lease in leases:
        if lease.address.version == 6:
            _require_ipv6(lease)
    for key, value in (("disable_ipv6", 0), ("accept_ra", 0), ("accept_dad", 0), ("keep_addr_on_down", 1)):
        sysctl.write(f"ipv6/conf/{ifname}/{key}", value)


def _require_ipv6(lease: Lease) -> None:
    if not _IPV6.exists():
        raise CniError(Code.BAD_CONFIG, f"address {lease.address}: this kernel runs without IPv6 (ipv6.disable=1)")


def _interface(text: str) -> addresses.IPInterface:
    return IPv6Interface(text) if ":" in text else IPv4Interface(text)
