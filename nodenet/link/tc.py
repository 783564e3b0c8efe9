"""eBPF programs on an interface: a clsact queueing discipline and one direct-action filter per side.

This works from Linux 5.10 on; where the kernel has tcx (bpf/tcx.py) the agent uses that.

A replaced filter is swapped in one step: no packet meets the interface without a program.
Filters outlive the process.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nodenet.link import netlink
from nodenet.link.handle import Link, LinkError, refusing
from nodenet.link.netlink import RefusedError, Request

_HANDLE = 1
_PRIORITY = 1
_ETH_P_ALL = socket.htons(0x0003)
_CLSACT, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
# rtnetlink(7), linux/pkt_sched.h, linux/pkt_cls.h
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWFILTER, _DELFILTER, _GETFILTER = 44, 45, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_CLASSID, _BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_TAG, _BPF_ID = 3, 6, 7, 8, 10, 11
_DIRECT_ACTION = 1
_HEADER = struct.Struct("=BxxxiIII")


class Hook(IntEnum):
    """The two sides of clsact, as the INTERFACE sees them. On the node's end of a pod's veth that is the reverse of
    the pod's view: what arrives here is what the pod sends."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Attached:
    """A filter on an interface. `program_id` and `tag` are the kernel's (bpftool prog)."""

    hook: Hook
    name: str
    program_id: int
    tag: str
    handle: int
    priority: int


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded sched_cls program for one side of an interface; the filter carries `name`."""

    hook: Hook
    fd: int
    name: str


def attach(link: Link, ifindex: int, hook: Hook, prog_fd: int, name: str) -> None:
    """Attach a loaded sched_cls program, in place of the one we had there. LinkError names the interface's index."""
    attach_all(link, ifindex, [Program(hook, prog_fd, name)])


def attach_all(link: Link, ifindex: int, programs: Sequence[Program]) -> list[str]:
    """Attach programs, each in place of the one we had there. Returns a sentence for each thing that had to give way.
    LinkError names what failed."""
    gave_way = _make_room(link, ifindex)
    try:
        link.kernel.run(*(_filter(ifindex, program) for program in programs))
    except RefusedError as error:
        program = programs[error.index]
        doing = f"cannot attach program {program.name} to {program.hook.name.lower()} of interface {ifindex}"
        raise LinkError(doing, error.code, error.text) from error
    return gave_way


def _make_room(link: Link, ifindex: int) -> list[str]:
    """A clsact on the interface. An ingress queueing discipline has the same place, and no side for what leaves: the
    kernel would put a filter for that side among those for what arrives. So it is removed: policy comes before a
    bandwidth limit. Returns a sentence about that."""
    clsact = _header(ifindex, _CLSACT, _CLSACT_PARENT) + netlink.text(_TCA_KIND, "clsact")
    request = Request(_NEWQDISC, clsact, netlink.CREATE | netlink.EXCL)
    with refusing(f"cannot add clsact to interface {ifindex}"):
        try:
            link.kernel.run(request)
            return []
        except RefusedError as error:
            if error.code != errno.EEXIST:
                raise
        if _kind_in_place(link, ifindex) == "clsact":
            return []
        link.kernel.run(Request(_DELQDISC, _header(ifindex, _CLSACT, _CLSACT_PARENT)))
        link.kernel.run(request)
    return [f"interface {ifindex}: its ingress queueing discipline (a limit of what its pod may send) was removed"]


def _kind_in_place(link: Link, ifindex: int) -> str:
    """What is where clsact would be: "clsact" or "ingress"."""
    body = link.kernel.ask(_GETQDISC, _header(ifindex, _CLSACT, _CLSACT_PARENT), netlink.ECHO)
    return netlink.string(netlink.attributes(body, _HEADER.size), _TCA_KIND)


def _filter(ifindex: int, program: Program) -> Request:
    options = netlink.nested(
        _TCA_OPTIONS,
        netlink.u32(_BPF_FD, program.fd),
        netlink.text(_BPF_NAME, program.name),
        netlink.u32(_BPF_CLASSID, 1),
        netlink.u32(_BPF_FLAGS, _DIRECT_ACTION),
    )
    header = _header(ifindex, _HANDLE, program.hook, _PRIORITY << 16 | _ETH_P_ALL)
    return Request(_NEWFILTER, header + netlink.text(_TCA_KIND, "bpf") + options, netlink.CREATE)


def attached(link: Link, ifindex: int) -> list[Attached]:
    """Every bpf filter on both sides of an interface, ours and others'. Empty when the interface is gone."""
    found = []
    for hook in Hook:
        try:
            with refusing(f"cannot list filters of interface {ifindex}"):
                bodies = link.kernel.dump(_GETFILTER, _header(ifindex, 0, hook))
        except LinkError as error:
            # ENODEV: no such interface. EINVAL: no clsact on it.
            if error.code in (errno.ENODEV, errno.EINVAL):
                return []
            raise
        found += [entry for body in bodies if (entry := _attached(hook, body)) is not None]
    return found


def detach(link: Link, ifindex: int, hook: Hook, name: str) -> bool:
    """Remove our filter; False when it was not there. The last filter's clsact goes with it."""
    ours = [entry for entry in attached(link, ifindex) if entry.hook == hook and entry.name == name]
    for entry in ours:
        with refusing(f"cannot detach program {name} from {hook.name.lower()} of interface {ifindex}"):
            header = _header(ifindex, entry.handle, hook, entry.priority << 16 | _ETH_P_ALL)
            link.kernel.run(Request(_DELFILTER, header + netlink.text(_TCA_KIND, "bpf")))
    if ours and not attached(link, ifindex):
        with refusing(f"cannot remove clsact of interface {ifindex}"):
            link.kernel.run(Request(_DELQDISC, _header(ifindex, _CLSACT, _CLSACT_PARENT)))
    return bool(ours)


def _header(ifindex: int, handle: int, parent: int, info: int = 0) -> bytes:
    """struct tcmsg. `info` of a filter is its priority, and in the lower half the protocol in network order."""
    return _HEADER.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)


def _attached(hook: Hook, body: bytes) -> Attached | None:
    """The filter of one message; None when it is another kind's, or tells of a priority as a whole."""
    _, _, handle, _, info = _HEADER.unpack_from(body)
    found = netlink.attributes(body, _HEADER.size)
    if netlink.string(found, _TCA_KIND) != "bpf" or not handle:
        return None
    options = netlink.attributes(found.get(_TCA_OPTIONS, b""))
    return Attached(
        hook=hook,
        name=netlink.string(options, _BPF_NAME),
        program_id=netlink.number(options, _BPF_ID),
        tag=options.get(_BPF_TAG, b"").hex(),
        handle=handle,
        priority=info >> 16,
    )
