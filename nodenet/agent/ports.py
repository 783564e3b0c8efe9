"""Keeps pods' interfaces ports of their bridge.

A network manager that takes an interface for its own removes it from the bridge, and the pod loses its network without
an error. All functions work in the network namespace of `link`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodenet.link import bridge
from nodenet.link.handle import Interface, Link, LinkError
from nodenet.model import Endpoint

# A network manager may do it again with each of its reloads.
HINT = (
    "does systemd-networkd or another network manager configure interfaces of pods? docs/operations.md#network-managers"
)


@dataclass(frozen=True, slots=True)
class Synced:
    """`restored`: endpoints whose interface was put back or brought up, with what was wrong. `problems`: a sentence for
    each that could not be."""

    restored: Mapping[Endpoint, str]
    problems: tuple[str, ...] = ()


def sync(link: Link, endpoints: Sequence[Endpoint]) -> Synced:
    """Put the interfaces of endpoints back into their bridges. An endpoint whose record does not say its bridge belongs
    where most others are. Raises LinkError if the interfaces cannot be read."""
    found = link.all()
    there, named = {one.index: one for one in found}, {one.name: one for one in found}
    ports = {one: there[one.host_ifindex] for one in endpoints if one.host_ifindex in there}
    usual = Counter(port.master for port in ports.values() if port.master).most_common(1)
    restored, problems = {}, []
    for one, port in ports.items():
        right = named.get(one.bridge) if one.bridge else there.get(port.master or (usual[0][0] if usual else 0))
        if right and (port.master, port.up) == (right.index, True):
            continue
        wrong = _wrong(port, right.name if right else one.bridge, there.get(port.master))
        reason = HINT
        try:
            if _put_back(link, one, port, right):
                restored[one] = wrong
                continue
        except LinkError as error:
            reason = str(error)
        problems.append(f"endpoint of {one.pod}: {wrong}: {reason}")
    return Synced(restored, tuple(problems))


def _wrong(port: Interface, bridge: str, master: Interface | None) -> str:
    where = bridge or "its bridge"
    if master is None:
        return f"its interface {port.name} was removed from {where}"
    return (
        f"its interface {port.name} is down"
        if master.name == bridge
        else f"its interface {port.name} was moved from {where} to {master.name}"
    )


def _put_back(link: Link, endpoint: Endpoint, port: Interface, to: Interface | None) -> bool:
    """False if that is not possible: the bridge is not known or gone; another program moved the port to another one,
    and would do it again; or the port had options (VLANs, isolation) that a new port does not have."""
    if to is None or to.kind != "bridge" or port.master not in (0, to.index):
        return False
    if endpoint.bridged and not port.master:
        return False
    if port.master:
        link.set(port.index, state="up")
    else:
        link.set(port.index, master=to.index, state="up")
        bridge.set_port(link, port.index, hairpin=endpoint.hairpin or None)
    return True
