"""Which answers of two modes differ, and which of these differences are documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.differential.probes import CLIENTS, HOSTS, Probe, Seen, policies

# What the others are compared with: the facts in docs/services.md are those of this mode.
BASE = "nftables"


def differing(probe: Probe, base: Seen, other: Seen) -> Iterator[str]:
    """The fields in which they differ: answer, backends, source, affinity."""
    if base.answers != other.answers:
        yield "answer"
        return
    if not policies(probe, base.backends) & policies(probe, other.backends):
        yield "backends"
    # A backend may see another source if it is the client itself.
    for own in (False, True):
        sources = [{source for source, is_client in seen.sources if is_client is own} for seen in (base, other)]
        if all(sources) and sources[0] != sources[1]:
            yield "source"
            break
    if probe.service.sticky and (len(base.backends) > 1) != (len(other.backends) > 1):
        yield "affinity"


@dataclass(frozen=True)
class Difference:
    """`says`: the words of docs/services.md. `explains`: whether it is the reason why a field differs."""

    mode: str
    name: str
    says: str
    explains: Callable[[str, Probe, Seen, Seen], bool]


def _is_external(probe: Probe) -> bool:
    return probe.kind != "cluster"


def _kept(field: str, probe: Probe, base: Seen, other: Seen) -> bool:
    """kube-proxy masquerades, eBPF does not."""
    allowed = {"client", "hairpin"} if probe.client not in HOSTS else {CLIENTS[probe.client]}
    return field == "source" and probe.at_home and {s for s, _ in other.sources} <= allowed


DOCUMENTED = (
    Difference(
        "iptables",
        "unserved ports of a ClusterIP",
        "| a port of a ClusterIP that is not served: reject | the packet is left to the host's routes |",
        lambda field, probe, base, other: field == "answer" and probe.kind == "cluster" and not probe.served,
    ),
    Difference(
        "iptables",
        "no endpoint, from the node to an external address",
        "reject | the packet is left to the host's routes: it is refused only where it is forwarded |",
        lambda field, probe, base, other: (
            field == "answer"
            and probe.client in HOSTS
            and _is_external(probe)
            and not probe.service.usable
            and base.answers <= {"refused", "denied"}
            and other.answers == {"timeout"}
        ),
    ),
    Difference(
        "iptables",
        "no endpoint, and the source is in no range",
        "| no usable endpoint, and the source is in no range of loadBalancerSourceRanges: drop | reject |",
        lambda field, probe, base, other: (
            field == "answer"
            and probe.kind == "balancer"
            and bool(probe.service.ranges)
            and not probe.service.usable
            and base.answers == {"timeout"}
            and other.answers == {"refused"}
        ),
    ),
    Difference(
        "ebpf",
        "the source is kept",
        "the source is kept (kube-proxy masquerades)",
        lambda field, probe, base, other: _is_external(probe) and _kept(field, probe, base, other),
    ),
    Difference(
        "ebpf",
        "hairpin",
        "the pod sees 169.254.42.1 or 100::1 as the client",
        lambda field, probe, base, other: _kept(field, probe, base, other) and any(own for _, own in other.sources),
    ),
    Difference(
        "ebpf",
        "a dropped call of the node fails at once",
        "a call of the node's own processes fails at once with `EPERM`",
        lambda field, probe, base, other: (
            field == "answer" and probe.client in HOSTS and base.answers == {"timeout"} and other.answers == {"denied"}
        ),
    ),
    Difference(
        "ebpf",
        "a refused datagram of the node",
        "A datagram socket of the node's own processes gets `EPERM` under kube-proxy, and `ECONNREFUSED` here",
        lambda field, probe, base, other: (
            field == "answer"
            and probe.client in HOSTS
            and probe.protocol == "udp"
            and probe.served
            and base.answers == {"denied"}
            and other.answers == {"refused"}
        ),
    ),
    Difference(
        "ebpf",
        "a connected UDP socket and an unserved port",
        "A connected UDP socket of the node's own processes gets no answer: `connect` sends nothing and must not fail",
        lambda field, probe, base, other: (
            field == "answer"
            and probe.client in HOSTS
            and probe.kind == "cluster"
            and probe.protocol == "udp"
            and not probe.served
            and other.answers == {"timeout"}
        ),
    ),
    Difference(
        "ebpf",
        "a backend on the called node sees the client",
        "a backend on this node sees the client (kube-proxy masquerades here too)",
        lambda field, probe, base, other: (
            field == "source"
            and not probe.at_home
            and len({s for s, _ in base.sources}) == 1
            and {s for s, _ in other.sources} <= {"client", CLIENTS[probe.client], *(s for s, _ in base.sources)}
        ),
    ),
)


def unexplained(mode: str, probe: Probe, base: Seen, other: Seen, counts: dict[str, int]) -> list[str]:
    """The fields that differ without a documented reason. Counts the reasons."""
    found = []
    for field in differing(probe, base, other):
        reason = next((d for d in DOCUMENTED if d.mode == mode and d.explains(field, probe, base, other)), None)
        if reason is None:
            found.append(field)
        else:
            counts[f"{mode}: {reason.name}"] = counts.get(f"{mode}: {reason.name}", 0) + 1
    return found
