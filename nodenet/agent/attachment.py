"""Both programs on a pod's veth: by tcx where the kernel has it (6.6 and newer), else by clsact.

clsact takes the one place that an ingress queueing discipline needs too; with tcx that stays free for the bandwidth
plugin (docs/decisions/0019-tcx-before-clsact.md). All functions mean the network namespace of the calling thread, which
`link` must belong to.
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
    """How programs are attached to pods' veths."""

    TCX = "tcx"
    CLSACT = "clsact"


@dataclass(frozen=True, slots=True)
class Hook:
    """One side of a veth's node end, for either mechanism."""

    tcx: tcx.Side
    clsact: tc.Hook


HOOKS = {name: Hook(side, tc.Hook[side.name]) for name, side in loader.TC_PROGRAMS.items()}


@cache
def mechanism() -> Mechanism:
    """The newest one that this kernel has."""
    return Mechanism.TCX if tcx.available() else Mechanism.CLSACT


def attach_new(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> None:
    """Both programs (descriptors by name) on a veth that has none of ours. Raises LinkError, OSError."""
    if (how or mechanism()) is Mechanism.CLSACT:
        wanted = [tc.Program(hook.clsact, programs[name], name) for name, hook in HOOKS.items()]
        for sentence in tc.attach_all(link, ifindex, wanted):
            log.warning("%s", sentence)
        return
    for name, hook in HOOKS.items():
        tcx.attach(ifindex, hook.tcx, programs[name])


def attach(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> int:
    """Make both programs of a veth right, each in one step: no packet meets the interface without one. With tcx, the
    filters that a previous version left are removed after that. How many were not right. Raises LinkError, OSError."""
    how = how or mechanism()
    wrong = missing(link, ifindex, programs, how)
    if how is Mechanism.CLSACT:
        for name in wrong:
            _attach_filter(link, ifindex, programs, name)
        return len(wrong)
    for name in wrong:
        tcx.attach(ifindex, HOOKS[name].tcx, programs[name])
    for name, hook in HOOKS.items():
        if tc.detach(link, ifindex, hook.clsact, name):
            log.info("interface %d: program %s is attached by tcx now, its filter was removed", ifindex, name)
    return len(wrong)


def attach_absent(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> int:
    """Attach each program whose side of a veth has none of ours, of no build: a pod that the plugin alone made. As long
    as no map speaks of it, they let nothing through. How many were attached. Raises LinkError, OSError."""
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
            _attach_filter(link, ifindex, programs, name)
    return len(absent)


def _attach_filter(link: Link, ifindex: int, programs: Mapping[str, int], name: str) -> None:
    for sentence in tc.attach_all(link, ifindex, [tc.Program(HOOKS[name].clsact, programs[name], name)]):
        log.warning("%s", sentence)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is not as it should be on a veth. `missing`: names of our programs that are not attached. `before`: by name
    of ours, numbers of others' programs that see its packets first and may pass them on without it."""

    missing: tuple[str, ...] = ()
    before: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def inspect(link: Link, ifindex: int, wanted: Mapping[str, int], how: Mechanism | None = None) -> Inspection | None:
    """Look at a veth; `wanted` are the kernel's numbers of our programs by name. None when the interface is gone."""
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


def missing(link: Link, ifindex: int, programs: Mapping[str, int], how: Mechanism | None = None) -> list[str]:
    """Names of the programs that are not attached to a veth. None is, when the interface is gone."""
    ids = attached_ids(link, ifindex, how)
    return [name for name in HOOKS if loader.program_id(programs[name]) not in ids[name]]


def attached_ids(link: Link, ifindex: int, how: Mechanism | None = None) -> dict[str, list[int]]:
    """The kernel's numbers of all programs, ours and others', on the side where each of ours belongs."""
    if (how or mechanism()) is Mechanism.TCX:
        return {name: tcx.program_ids(ifindex, hook.tcx) for name, hook in HOOKS.items()}
    there = tc.attached(link, ifindex)
    return {name: [entry.program_id for entry in there if entry.hook == hook.clsact] for name, hook in HOOKS.items()}
