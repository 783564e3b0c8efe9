"""Attaches both programs to a pod's veth or to an uplink: with tcx if the kernel has it (6.6 and newer), else clsact.

clsact and the ingress queueing discipline use the same place, which only one of them can have. With tcx it remains free
for the bandwidth plugin (docs/decisions/0019-tcx-before-clsact.md). All functions work in the network namespace of the
calling thread, and `link` must belong to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from nodenet.bpf import loader, tcx
from nodenet.link import tc
from nodenet.link.handle import Link

log = logging.getLogger(__name__)


class Mechanism(StrEnum):
    """The ways to attach programs to pods' veths."""

    TCX = "tcx"
    CLSACT = "clsact"


@dataclass(frozen=True, slots=True)
class Hook:
    """One side of a veth's node end, for both mechanisms."""

    tcx: tcx.Side
    clsact: tc.Hook


HOOKS = {name: Hook(side, tc.Hook[side.name]) for name, side in loader.TC_PROGRAMS.items()}
UPLINK_HOOKS = {name: Hook(side, tc.Hook[side.name]) for name, side in loader.UPLINK_PROGRAMS.items()}


@cache
def mechanism() -> Mechanism:
    """The newest mechanism that this kernel supports."""
    return Mechanism.TCX if tcx.available() else Mechanism.CLSACT


def attach_new(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> None:
    """Attach both programs (descriptors by name) to a veth that has none of ours. Raises LinkError, OSError."""
    if (how or mechanism()) is Mechanism.CLSACT:
        wanted = [tc.Program(hook.clsact, programs[name], name) for name, hook in HOOKS.items()]
        for sentence in tc.attach_all(link, ifindex, wanted):
            log.warning("%s", sentence)
        return
    for name, hook in HOOKS.items():
        tcx.attach(ifindex, hook.tcx, programs[name])


def attach(
    link: Link,
    ifindex: int,
    programs: Mapping[str, int],
    how: Mechanism | None = None,
    hooks: Mapping[str, Hook] = HOOKS,
) -> int:
    """Update both programs of an interface. Each is replaced atomically, so no packet passes the interface without a
    program. With tcx, filters of a previous version are removed afterwards. Returns how many programs were not up to
    date. Raises LinkError, OSError."""
    how = how or mechanism()
    wrong = missing(link, ifindex, programs, how, hooks)
    if how is Mechanism.CLSACT:
        for name in wrong:
            _attach_filter(link, ifindex, hooks[name], programs[name], name)
        return len(wrong)
    for name in wrong:
        tcx.attach(ifindex, hooks[name].tcx, programs[name])
    for name, hook in hooks.items():
        if tc.detach(link, ifindex, hook.clsact, name):
            log.info("interface %d: program %s is attached by tcx now, its filter was removed", ifindex, name)
    return len(wrong)


def attach_absent(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> int:
    """Attach each program whose side of a veth has none of ours, of any build: a pod that the plugin made without the
    agent. Until the maps have the pod's endpoint, the programs drop all its packets. Returns how many were attached.
    Raises LinkError, OSError."""
    how = how or mechanism()
    filters = {(entry.hook, entry.name) for entry in tc.attached(link, ifindex)}
    by_tcx = {(entry.side, entry.name) for entry in tcx.attached(ifindex)} if how is Mechanism.TCX else set()
    absent = [
        name
        for name, hook in HOOKS.items()
        if (hook.clsact, name) not in filters and (hook.tcx, tcx.kernel_name(name)) not in by_tcx
    ]
    for name in absent:
        if how is Mechanism.TCX:
            tcx.attach(ifindex, HOOKS[name].tcx, programs[name])
        else:
            _attach_filter(link, ifindex, HOOKS[name], programs[name], name)
    return len(absent)


def _attach_filter(link: Link, ifindex: int, hook: Hook, program: int, name: str) -> None:
    for sentence in tc.attach_all(link, ifindex, [tc.Program(hook.clsact, program, name)]):
        log.warning("%s", sentence)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Problems of a veth. `missing`: names of our programs that are not attached. `before`: by name of our program, the
    ids of foreign programs that run before it and may pass packets on without it."""

    missing: tuple[str, ...] = ()
    before: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def inspect(link: Link, ifindex: int, wanted: Mapping[str, int], how: Mechanism | None = None) -> Inspection | None:
    """Check a veth. `wanted`: the ids of our programs by name. None if the interface does not exist."""
    found = attached_ids(link, ifindex, how)
    missing = tuple(name for name in HOOKS if wanted[name] not in found[name])
    before = {}
    for name, hook in HOOKS.items():
        ahead = tuple(found[name][: found[name].index(wanted[name])]) if name not in missing else ()
        if hook.tcx is tcx.Side.INGRESS and (xdp := tcx.xdp_program(ifindex)):
            ahead = (xdp, *ahead)
        if ahead:
            before[name] = ahead
    if missing and link.get(ifindex) is None:
        return None
    return Inspection(missing, before)


def missing(
    link: Link,
    ifindex: int,
    programs: Mapping[str, int],
    how: Mechanism | None = None,
    hooks: Mapping[str, Hook] = HOOKS,
) -> list[str]:
    """Names of the programs that are not attached to an interface: all of them if the interface does not exist."""
    ids = attached_ids(link, ifindex, how, hooks)
    return [name for name in hooks if loader.program_id(programs[name]) not in ids[name]]


def attached_ids(
    link: Link, ifindex: int, how: Mechanism | None = None, hooks: Mapping[str, Hook] = HOOKS
) -> dict[str, list[int]]:
    """By name of our program: the ids of all programs, also foreign ones, on the side where it belongs."""
    if (how or mechanism()) is Mechanism.TCX:
        return {name: tcx.program_ids(ifindex, hook.tcx) for name, hook in hooks.items()}
    there = tc.attached(link, ifindex)
    return {name: [entry.program_id for entry in there if entry.hook == hook.clsact] for name, hook in hooks.items()}
