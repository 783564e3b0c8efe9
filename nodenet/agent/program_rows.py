"""The answer to `nodenet program list`: each program where it is attached, also foreign ones on our interfaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodenet.agent import attachment
from nodenet.bpf import libbpf, loader
from nodenet.bpf.pins import Pins, opened
from nodenet.bpf.programs import ProgramFacts, facts, statistics_on
from nodenet.link.handle import Link
from nodenet.model import Endpoint

Row = dict[str, Any]
_TC_WORDS = {
    "endpoint_egress": "what the pod sends",
    "endpoint_ingress": "what the pod receives",
    "netdev_ingress": "what comes from the network",
    "netdev_egress": "what goes to the network",
}


@dataclass(frozen=True, slots=True)
class Places:
    """Where programs are attached. `uplinks`: names of interfaces."""

    endpoints: Iterable[Endpoint]
    uplinks: Iterable[str]
    cgroup: str
    pins: Pins


def programs(places: Places, ours: Mapping[str, int]) -> Iterator[Row]:
    """`ours`: the ids of this agent's programs by name. Runs in a worker thread. Raises LinkError, OSError."""
    counted = statistics_on()
    known: dict[int, ProgramFacts | None] = {}
    mine = {number: name for name, number in ours.items()}
    for place, number in _attached(places):
        if number not in known:
            known[number] = facts(number)
        found = known[number]
        if found is not None:
            yield _row(place, found, mine.get(number, ""), counted)


def _row(place: Row, found: ProgramFacts, name: str, counted: bool) -> Row:
    """`wanted`: the program that belongs on this hook. Without statistics the counters are None: the kernel's are then
    those of an earlier time."""
    wanted = place.pop("wanted")
    state = "ok" if name == wanted else "other build" if found.name == wanted[:15] else "foreign"
    return {
        "program": name or found.name,
        "id": found.number,
        **place,
        "state": state,
        "runs": found.runs if counted else None,
        "nanoseconds": round(found.nanoseconds / found.runs, 1) if counted and found.runs else None,
        "tag": found.tag,
    }


def _attached(places: Places) -> Iterator[tuple[Row, int]]:
    """Each place with the id of a program there, in the order in which they run."""
    with Link() as link:
        for endpoint in sorted(places.endpoints, key=lambda one: one.endpoint_id):
            where = {"interface": endpoint.host_ifname, "pod": str(endpoint.pod)}
            yield from _on_interface(link, endpoint.host_ifindex, attachment.HOOKS, where)
        for name in places.uplinks:
            interface = link.get(name)
            if interface is not None:
                where = {"interface": name, "pod": ""}
                yield from _on_interface(link, interface.index, attachment.UPLINK_HOOKS, where)
    for name in loader.CGROUP_PROGRAMS:
        path = places.pins.links / name
        if path.exists():
            with opened(path) as fd:
                number = int(libbpf.info(fd, libbpf.CgroupLinkInfo).prog_id)
            yield {"wanted": name, "hook": f"cgroup {places.cgroup}", "interface": "", "pod": ""}, number


def _on_interface(
    link: Link, ifindex: int, hooks: Mapping[str, attachment.Hook], where: Mapping[str, str]
) -> Iterator[tuple[Row, int]]:
    for name, numbers in attachment.attached_ids(link, ifindex, hooks=hooks).items():
        hook = f"{attachment.mechanism().value} {hooks[name].tcx.name.lower()}: {_TC_WORDS[name]}"
        for number in numbers:
            yield {"wanted": name, "hook": hook, **where}, number
