"""Creates and removes the kernel objects of an attachment: bridge, veth pair, addresses, routes, sysctls.

Every step is one function, so that its caller can name it, measure it and make it fail in tests.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from pathlib import Path

from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Lease, Owner
from nodenet.cni.routes import PodRoute
from nodenet.cni.signals import pause
from nodenet.endpoint import IPAddress
from nodenet.link import addresses, announce, bridge, forwarding, netns, nft, routes, sysctl, veth, vlan
from nodenet.link.handle import Interface, Link, LinkError, change_request

_IPV6 = Path("/proc/sys/net/ipv6")
# ip link: ADDR_GEN_MODE none. A bridge port needs no link-local address; without one there is no DAD and MLD traffic.
_NO_ADDRESS = 1
# The VLAN that a bridge assigns to each new port.
_DEFAULT_VLAN = 1
# Timeout in seconds of duplicate address detection; the kernel takes one second by default.
_DAD_SECONDS = 10.0
# Flags of /proc/net/if_inet6 (linux/if_addr.h).
_TENTATIVE, _DUPLICATE = 0x40, 0x08


def host_ifname(owner: Owner) -> str:
    """The name of the node's end of the veth pair. It is derived from the owner, so that DEL needs no record."""
    digest = hashlib.blake2b(owner.text.encode(), digest_size=6).hexdigest()
    # 15 characters, the kernel's limit. Many tools ignore interfaces named veth*.
    return "veth" + digest[:11]


def pod_mac(leases: Sequence[Lease]) -> str:
    """A locally administered MAC, derived from the address: the next pod with this address has the same MAC, so
    neighbour caches stay correct. Random if there is no address."""
    if not leases:
        return bridge.random_mac()
    first = leases[0].address.ip
    tail = first.packed if first.version == 4 else hashlib.blake2b(first.packed, digest_size=4).digest()
    return (b"\x0a\x58" + tail).hex(":")


def ensure_bridge(node: Link, conf: NetConf, leases: Sequence[Lease]) -> Interface:
    """Ensure that the bridge exists. If the configuration makes it a gateway, the gateway addresses are on it (or on
    its VLAN interface) and forwarding is enabled."""
    found = bridge.ensure(node, conf.bridge, conf.mtu, conf.promiscuous)
    if conf.bridge_follows_mtu and found.mtu != conf.mtu:
        node.set(found.index, mtu=conf.mtu)
    if _IPV6.exists():
        # Ignore router advertisements: a pod could use them to redirect the node's traffic (CVE-2020-10749).
        sysctl.write(f"ipv6/conf/{conf.bridge}/accept_ra", 0)
    if conf.vlan or conf.trunk:
        _enable_vlan_filtering(node, conf, found)
    if not conf.is_gateway:
        return found
    gateway_on = vlan.gateway_interface(node, found, conf.vlan, conf.mtu) if conf.vlan and leases else found
    present = [entry.interface for entry in addresses.local(node, gateway_on.index)]
    for lease in leases:
        if lease.address.version == 6:
            _require_ipv6(lease)
            sysctl.write(f"ipv6/conf/{gateway_on.name}/disable_ipv6", 0)
            sysctl.write(f"ipv6/conf/{gateway_on.name}/accept_ra", 0)
        gateway = _interface(f"{lease.gateway}/{lease.address.network.prefixlen}")
        _ensure_gateway(node, conf, gateway_on, gateway, present)
        forwarding.enable(node, gateway.version)
    return found


def filter_port(conf: NetConf, owner: Owner, mac: str, leases: Sequence[Lease]) -> None:
    """Create the rules of ipMasq and macspoofchk, before the pod can send packets."""
    if conf.mac_spoof_check:
        nft.check_source_mac(host_ifname(owner), mac)
    if conf.ip_masq:
        for lease in leases:
            nft.masquerade(conf.name, lease.address.network, lease.address.ip)


def unfilter_port(network: str, owner: Owner, known: Iterable[IPAddress]) -> None:
    """Remove the rules of `filter_port`. Idempotent."""
    nft.remove_rules(network, host_ifname(owner), known)


def create_pair(node: Link, conf: NetConf, owner: Owner, pod_netns: int, mac: str) -> tuple[Interface, Interface]:
    """Create the veth pair with both ends down. Returns the node's end and the pod's.

    The node's end gets its MAC with the request, because udev changes one that the kernel chose
    (MACAddressPolicy=persistent).
    """
    own = bridge.random_mac()
    host = veth.create(node, host_ifname(owner), owner.ifname, pod_netns, mac=own, peer_mac=mac, mtu=conf.mtu)
    if _IPV6.exists():
        node.set(host.index, addr_gen_mode=_NO_ADDRESS)
    return host, replace(host, index=host.peer, name=owner.ifname, mac=mac, peer=host.index)


def join_bridge(node: Link, conf: NetConf, port: Interface, to: Interface) -> None:
    """Make the node's end a port of the bridge, set the port options, and bring it up."""
    joined = (f"cannot make {port.name} a port of bridge {to.name}", change_request(port.index, master=to.index))
    up = (f"cannot bring {port.name} up", change_request(port.index, state="up"))
    if not (conf.hairpin or conf.port_isolation or conf.vlan or conf.trunk):
        node.batch(joined, up)
        return
    node.batch(joined)
    bridge.set_port(node, port.index, hairpin=conf.hairpin or None, isolated=conf.port_isolation or None)
    if conf.vlan or conf.trunk:
        if not conf.preserve_default_vlan and _DEFAULT_VLAN not in (conf.vlan, *conf.trunk):
            _leave_default_vlan(node, port)
        for first, last in _spans(conf.trunk):
            bridge.add_vlan(node, port.index, first, last)
        if conf.vlan:
            bridge.add_vlan(node, port.index, conf.vlan, untagged=True)
    node.batch(up)


def configure_pod(pod: Link, pod_netns: int, conf: NetConf, interface: Interface, leases: Sequence[Lease]) -> None:
    """Add the addresses to the pod's end, and bring it up unless the configuration keeps it down."""
    index, ifname = interface.index, interface.name
    with netns.inside(pod_netns):
        _pod_ipv6(ifname, leases, conf.enable_dad)
    steps = [
        (
            f"cannot add address {lease.address} to {ifname}",
            addresses.add_request(index, lease.address, conf.enable_dad),
        )
        for lease in leases
    ]
    if not conf.container_interface_down:
        steps.append((f"cannot bring {ifname} up", change_request(index, state="up")))
    pod.batch(*steps)


def add_routes(pod: Link, ifindex: int, wanted: Sequence[PodRoute]) -> None:
    """Add the pod's routes. A gateway outside the pod's subnets is treated as on-link, as in the reference plugin.
    Routes of another attachment of the pod stay, even to the same destination."""
    steps = []
    for route in wanted:
        extra = {name: value for name in ("priority", "table", "scope") if (value := getattr(route, name)) is not None}
        metrics = {name: value for name in ("mtu", "advmss") if (value := getattr(route, name)) is not None}
        if metrics:
            extra["metrics"] = metrics
        doing = f"cannot add route to {route.network}" + (f" via {route.gateway}" if route.gateway else "")
        steps.append((doing, routes.append_request(ifindex, route.network, route.gateway, **extra)))
    pod.batch(*steps)


def pod_routes(conf: NetConf, leases: Sequence[Lease]) -> list[PodRoute]:
    """The configured routes with their gateways, and a default route per family if we are the default gateway."""
    gateways = {lease.gateway.version: lease.gateway for lease in reversed(leases) if lease.gateway}
    # A route of a family without an address stays without a gateway (on-link), as in the reference plugin.
    found = [
        replace(route, gateway=route.gateway or gateways.get(route.network.version))
        for route in (conf.ipam.routes if conf.ipam else conf.delegated_routes)
    ]
    if conf.is_default_gateway:
        for version, gateway in sorted(gateways.items()):
            default = ip_network("0.0.0.0/0" if version == 4 else "::/0")
            if all(route.network != default for route in found):
                found.append(PodRoute(default, gateway))
    return found


def settle(node: Link, conf: NetConf, port: Interface, pod_netns: int, ifname: str) -> None:
    """Wait until the bridge port forwards: a pod that starts earlier would lose its first packets. With enabledad,
    also wait until duplicate detection of the pod's IPv6 addresses has finished."""
    if conf.container_interface_down:
        return
    bridge.wait_forwarding(node, port.index)
    if conf.enable_dad and _IPV6.exists():
        netns.call(pod_netns, _wait_for_dad, ifname)


def announce_addresses(pod_netns: int, interface: Interface, mac: str, leases: Sequence[Lease]) -> None:
    """Update the caches of neighbours that know the previous owner of an address. Not needed for the address from
    which the MAC is derived: its previous owner had the same MAC."""
    if not interface.up and not leases:
        return
    derived = mac == pod_mac(leases)
    for lease in leases[1:] if derived else leases:
        address = lease.address.ip
        if isinstance(address, IPv4Address):
            announce.announce_v4(pod_netns, interface.name, mac, address)
        else:
            announce.announce_v6(pod_netns, interface.index, mac, address)


def disconnect(node: Link, owner: Owner, host_name: str) -> bool:
    """Remove the veth pair by its node's end; False if it does not exist."""
    return node.delete(host_name or host_ifname(owner))


def disconnect_in(pod_netns: str, ifname: str) -> bool:
    """Remove the interface inside the pod's namespace: for pairs whose node's end was named by another plugin.

    Removes only a veth, and never one in the node's own namespace. False if there is nothing to remove.
    """
    if not netns.is_namespace(pod_netns) or netns.inode(pod_netns) == netns.inode():
        return False
    with Link(pod_netns) as pod:
        found = pod.get(ifname)
        return found is not None and found.kind == "veth" and pod.delete(found.index)


def _ensure_gateway(
    node: Link, conf: NetConf, to: Interface, gateway: addresses.IPInterface, present: Sequence[addresses.IPInterface]
) -> None:
    """Add the gateway's address to the bridge. Another address stays if it does not conflict (IPv6 networks that do
    not overlap); else it is replaced only with forceAddress, as in the reference plugin."""
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


def _enable_vlan_filtering(node: Link, conf: NetConf, to: Interface) -> None:
    try:
        bridge.set_vlan_filtering(node, to.index, on=True)
    except LinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        key = "vlan" if conf.vlan else "vlanTrunk"
        message = (
            f"network {conf.name}: {key}: this kernel's bridges do not support VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"
        )
        raise CniError(Code.KERNEL_REFUSED, message) from error


def _leave_default_vlan(node: Link, port: Interface) -> None:
    try:
        bridge.remove_vlan(node, port.index, _DEFAULT_VLAN)
    except LinkError as error:
        # ENOENT: the bridge has no default VLAN.
        if error.code != errno.ENOENT:
            raise


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted numbers as (first, last) of each consecutive range."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _wait_for_dad(ifname: str) -> None:
    """In the pod's namespace: wait until no address of the interface is tentative. LinkError if an address is a
    duplicate, or after _DAD_SECONDS."""
    deadline = time.monotonic() + _DAD_SECONDS
    while True:
        # An interface's name may hold any byte.
        table = Path("/proc/thread-self/net/if_inet6").read_text("utf-8", "surrogateescape")
        rows = [line.split() for line in table.splitlines()]
        flags = {row[0]: int(row[4], 16) for row in rows if row[5] == ifname}
        for address, flag in flags.items():
            if flag & _DUPLICATE:
                text = str(IPv6Address(int(address, 16)))
                raise LinkError(
                    f"address {text} of {ifname}: duplicate detection found another owner", errno.EADDRINUSE
                )
        if not any(flag & _TENTATIVE for flag in flags.values()):
            return
        if time.monotonic() > deadline:
            raise LinkError(f"duplicate detection on {ifname} did not end in {_DAD_SECONDS:g} s", errno.ETIMEDOUT)
        pause(0.02)


def _pod_ipv6(ifname: str, leases: Sequence[Lease], detect: bool) -> None:
    """In the pod's namespace: set the sysctls so that router advertisements add no addresses (CVE-2020-10749) and
    duplicate detection removes none, unless the configuration enables it."""
    for lease in leases:
        if lease.address.version == 6:
            _require_ipv6(lease)
            sysctl.write(f"ipv6/conf/{ifname}/disable_ipv6", 0)
            sysctl.write(f"ipv6/conf/{ifname}/keep_addr_on_down", 1)
    if _IPV6.exists():
        for key, value in (("accept_ra", 0), ("accept_dad", int(detect)), ("enhanced_dad", int(detect))):
            sysctl.write(f"ipv6/conf/{ifname}/{key}", value)


def _require_ipv6(lease: Lease) -> None:
    if not _IPV6.exists():
        raise CniError(Code.BAD_CONFIG, f"address {lease.address}: IPv6 is disabled in this kernel (ipv6.disable=1)")


def _interface(text: str) -> addresses.IPInterface:
    return IPv6Interface(text) if ":" in text else IPv4Interface(text)
