"""Attaches eBPF programs to an interface with a clsact queueing discipline and one direct-action filter per direction.

Works from Linux 5.10 on; on kernels with tcx the agent uses bpf/tcx.py instead.

A filter is replaced atomically: no packet passes the interface without a program. Filters persist after the process
ends.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nodenet.link import netlink
from nodenet.link.handle import Link, LinkError, link_errors
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
    """The two directions of clsact, as the INTERFACE sees them. On the node's end of a pod's veth they are the
    reverse of the pod's view: packets that arrive here were sent by the pod."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Attached:
    """A filter on an interface. `program_id` and `tag` identify the program in the kernel (bpftool prog)."""

    hook: Hook
    name: str
    program_id: int
    tag: str
    handle: int
    priority: int


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded sched_cls program for one direction of an interface; the filter is called `name`."""

    hook: Hook
    fd: int
    name: str


def attach(link: Link, ifindex: int, hook: Hook, prog_fd: int, name: str) -> None:
    """Attach a loaded sched_cls program; it replaces our previous one. LinkError names the interface's index."""
    attach_all(link, ifindex, [Program(hook, prog_fd, name)])


def attach_all(link: Link, ifindex: int, programs: Sequence[Program]) -> list[str]:
    """Attach programs; each replaces our previous one. Returns a sentence for each thing that was removed to make
    room. LinkError names what failed."""
    removed = _ensure_clsact(link, ifindex)
    try:
        link.kernel.run(*(_filter(ifindex, program) for program in programs))
    except RefusedError as error:
        program = programs[error.index]
        doing = f"cannot attach program {program.name} to {program.hook.name.lower()} of interface {ifindex}"
        raise LinkError(doing, error.code, error.text) from error
    return removed


def _ensure_clsact(link: Link, ifindex: int) -> list[str]:
    """Ensure a clsact on the interface. An ingress queueing discipline occupies the same place but has no egress
    side: the kernel would attach our egress filter to ingress. So it is removed, because policy is more important
    than a bandwidth limit. Returns a sentence about the removal."""
    clsact = _header(ifindex, _CLSACT, _CLSACT_PARENT) + netlink.text(_TCA_KIND, "clsact")
    request = Request(_NEWQDISC, clsact, netlink.CREATE | netlink.EXCL)
    with link_errors(f"cannot add clsact to interface {ifindex}"):
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
    return [
        f"interface {ifindex}: its ingress queueing discipline (a bandwidth limit for what its pod sends) was removed"
    ]


def _kind_in_place(link: Link, ifindex: int) -> str:
    """The queueing discipline in the place of clsact: "clsact" or "ingress"."""
    body = link.kernel.get(_GETQDISC, _header(ifindex, _CLSACT, _CLSACT_PARENT), netlink.ECHO)
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
    """All bpf filters of both directions of an interface, ours and others'. Empty if the interface does not exist."""
    found = []
    for hook in Hook:
        try:
            with link_errors(f"cannot list filters of interface {ifindex}"):
                bodies = link.kernel.dump(_GETFILTER, _header(ifindex, 0, hook))
        except LinkError as error:
            # ENODEV: no such interface. EINVAL: no clsact on it.
            if error.code in (errno.ENODEV, errno.EINVAL):
                return []
            raise
        found += [entry for body in bodies if (entry := _attached(hook, body)) is not None]
    return found


def detach(link: Link, ifindex: int, hook: Hook, name: str) -> bool:
    """Remove our filter; False if it does not exist. The clsact is removed with its last filter."""
    ours = [entry for entry in attached(link, ifindex) if entry.hook == hook and entry.name == name]
    for entry in ours:
        with link_errors(f"cannot detach program {name} from {hook.name.lower()} of interface {ifindex}"):
            header = _header(ifindex, entry.handle, hook, entry.priority << 16 | _ETH_P_ALL)
            link.kernel.run(Request(_DELFILTER, header + netlink.text(_TCA_KIND, "bpf")))
    if ours and not attached(link, ifindex):
        with link_errors(f"cannot remove clsact of interface {ifindex}"):
            link.kernel.run(Request(_DELQDISC, _header(ifindex, _CLSACT, _CLSACT_PARENT)))
    return bool(ours)


def _header(ifindex: int, handle: int, parent: int, info: int = 0) -> bytes:
    """struct tcmsg. For a filter, the upper half of `info` is the priority and the lower half the protocol in
    network byte order."""
    return _HEADER.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)


def _attached(hook: Hook, body: bytes) -> Attached | None:
    """The filter of one message; None if it is not a bpf filter, or the message describes a whole priority."""
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
