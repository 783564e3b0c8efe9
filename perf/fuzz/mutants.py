"""Reverts fixes of the datapath one at a time, to prove that the fuzzer would find each bug again.

Several places may each prevent the same bug. A mutant then reverts all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nodenet.bpf import build
from nodenet.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Edit:
    """A replacement. `old` occurs in the file exactly `times` times."""

    file: str
    old: str
    new: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """One reverted fix. `finds`: the end of the kind of the expected finding (`Finding.way`), or over devices (`wire`)
    a part of its text."""

    what: str
    finds: str
    edits: tuple[Edit, ...]
    wire: bool = False


_OVERLAP = (
    Edit("lib/fragment.h", "packet->fragment_offset < nn_transport_header(packet)", "0"),
    Edit("lib/fragment.h", "packet->fragment_offset < first->headers", "0"),
)

_OPTIONS = Edit(
    "lib/neighbour.h",
    "return nn_check_options(ctx, packet, is_neighbours ? NN_ND_NEIGHBOUR_SIZE : NN_ND_SOLICITATION_SIZE);",
    "return 0;",
)

MUTANTS: Mapping[str, Mutant] = {
    "trailer": Mutant(
        "headers are read up to the end of the frame, and later fragments may overlap them",
        "IPv6: a denied port",
        (
            Edit("lib/packet.h", "packet->offset + size > packet->end", "0"),
            Edit("lib/parse.h", "packet->offset > packet->end", "0"),
            Edit("lib/parse.h", "packet->offset + nn_transport_header(packet) > packet->end", "0"),
            *_OVERLAP,
        ),
    ),
    "hidden-syn": Mutant(
        "a first fragment may end inside TCP's header, where the kernel cuts it to a multiple of 8",
        "SYN against the direction of a flow",
        (
            Edit("lib/fragment.h", "(more && (payload & 7))", "(more && 0)"),
            Edit("lib/packet.h", "return NN_TCP_HEADER;", "return 14;"),
            # The ports and flags are read with the field behind them, which such a fragment does not have.
            Edit(
                "lib/parse.h",
                "\t\tif (nn_load_next(ctx, packet, &header, sizeof(header))",
                "\t\tif (nn_load_next(ctx, packet, &header, 14)",
            ),
            *_OVERLAP,
        ),
    ),
    "quote": Mutant(
        "an ICMP error's quote may lie behind the end of the packet",
        "an ICMP error that quotes no ports",
        (Edit("lib/quote.h", "inner->end = context->packet.end;", "inner->end = ctx->len;"),),
    ),
    "length-zero": Mutant(
        "an IPv6 packet of length 0 reaches to the end of the frame",
        "without ports",
        (
            Edit(
                "lib/parse.h",
                "length = nn_big_tcp_payload(ctx, packet, ip.nexthdr);",
                "length = ctx->len - packet->offset - sizeof(ip);",
            ),
        ),
    ),
    "flow-direction": Mutant(
        "a SYN belongs to a flow that the other side opened",
        "SYN against the direction of a flow",
        (Edit("lib/conntrack.h", "return nn_is_syn(packet);", "return 0;"),),
    ),
    "third-party-error": Mutant(
        "a pod may report errors about the flows of others",
        "an ICMP error about a flow of others",
        (Edit("lib/police.h", "if (nn_addr_equal(sender, &quoted->daddr))", "if (sender || quoted)"),),
    ),
    "source": Mutant(
        "a pod may send from the address of another one on the node",
        "a source address that is not A's",
        (
            Edit(
                "lib/link.h",
                "return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), endpoint->mac) ?",
                "return 1 ?",
            ),
        ),
    ),
    "unfinished-checksum": Mutant(
        "a device may write a packet's checksum anywhere",
        "a denied port",
        (Edit("lib/offload.h", "if (is_partial)\n\t\tresult = ", "if (0)\n\t\tresult = "),),
        wire=True,
    ),
    "discovery-payload": Mutant(
        "a pod's neighbour discovery may carry anything behind its fixed part",
        "ICMP type 135",
        (_OPTIONS,),
    ),
    "router-advertisement": Mutant(
        "a pod may call itself a router",
        "ICMP type 134",
        (Edit("lib/neighbour.h", "packet->icmp_type == NN_ND_ROUTER_ADVERTISEMENT || ", ""), _OPTIONS),
    ),
}


@contextmanager
def sources(mutant: Mutant) -> Iterator[Path]:
    """A copy of our eBPF sources with the edits. Raises BadInputError if an edit no longer applies."""
    with TemporaryDirectory(prefix="nodenet-mutant-") as folder:
        copy = Path(folder) / "bpf"
        shutil.copytree(build.source_dir(), copy)
        for edit in mutant.edits:
            path = copy / edit.file
            text = path.read_text()
            if text.count(edit.old) != edit.times:
                raise BadInputError(f"{edit.file} has {text.count(edit.old)} times {edit.old!r}, not {edit.times}")
            path.write_text(text.replace(edit.old, edit.new))
        yield copy
