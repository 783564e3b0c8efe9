"""eBPF programs on an interface: a clsact queueing discipline and one direct-action filter per side.

The floor is Linux 5.10. A replaced filter is swapped in one step: no packet meets the interface without a program.
Filters outlive the process.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pyroute2.netlink.rtnl.tcmsg import sched_bpf

from nodenet.link.handle import Link, LinkError, refusing

_HANDLE = 1
_PRIORITY = 1
_ETH_P_ALL = 0x0003
_CLSACT = 0xFFFF0000

# pyroute2 0.9 knows the attributes up to TCA_BPF_FLAGS; the kernel also tells these (linux/pkt_cls.h, in this order).
_LATER = (("TCA_BPF_FLAGS_GEN", "uint32"), ("TCA_BPF_TAG", "hex"), ("TCA_BPF_ID", "uint32"))
if len(sched_bpf.options.nla_map) == 9:
    sched_bpf.options.nla_map = (*sched_bpf.options.nla_map, *_LATER)


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


def attach(link: Link, ifindex: int, hook: Hook, prog_fd: int, name: str) -> None:
    """Attach a loaded sched_cls program, in place of the one we had there. LinkError names the interface's index."""
    try:
        with refusing(f"cannot add clsact to interface {ifindex}"):
            link.ip.tc("add", "clsact", ifindex)
    except LinkError as error:
        if error.code != errno.EEXIST:
            raise
    with refusing(f"cannot attach program {name} to {hook.name.lower()} of interface {ifindex}"):
        link.ip.tc(
            "replace-filter",
            "bpf",
            ifindex,
            handle=_HANDLE,
            fd=prog_fd,
            name=name,
            parent=hook.value,
            prio=_PRIORITY,
            classid=1,
            direct_action=True,
        )


def attached(link: Link, ifindex: int) -> list[Attached]:
    """Every bpf filter on both sides of an interface, ours and others'. Empty when the interface is gone."""
    found = []
    for hook in Hook:
        try:
            with refusing(f"cannot list filters of interface {ifindex}"):
                messages = link.ip.get_filters(index=ifindex, parent=hook.value)
        except LinkError as error:
            # ENODEV: no such interface. EINVAL: no clsact on it.
            if error.code in (errno.ENODEV, errno.EINVAL):
                return []
            raise
        found += [_attached(hook, message) for message in messages if _is_filter(message)]
    return found


def detach(link: Link, ifindex: int, hook: Hook, name: str) -> bool:
    """Remove our filter; False when it was not there. The last filter's clsact goes with it."""
    ours = [entry for entry in attached(link, ifindex) if entry.hook == hook and entry.name == name]
    for entry in ours:
        with refusing(f"cannot detach program {name} from {hook.name.lower()} of interface {ifindex}"):
            link.ip.tc(
                "del-filter",
                "bpf",
                ifindex,
                handle=entry.handle,
                parent=hook.value,
                info=entry.priority << 16 | _ETH_P_ALL << 8,
            )
    if ours and not attached(link, ifindex):
        with refusing(f"cannot remove clsact of interface {ifindex}"):
            link.ip.tc("del", "clsact", ifindex)
    return bool(ours)


def _is_filter(message: Any) -> bool:
    return bool(message.get_attr("TCA_KIND") == "bpf" and message["handle"])


def _attached(hook: Hook, message: Any) -> Attached:
    options = message.get_attr("TCA_OPTIONS")
    return Attached(
        hook=hook,
        name=options.get_attr("TCA_BPF_NAME") or "",
        program_id=options.get_attr("TCA_BPF_ID") or 0,
        tag=(options.get_attr("TCA_BPF_TAG") or "").replace(":", ""),
        handle=message["handle"],
        priority=message["info"] >> 16,
    )
