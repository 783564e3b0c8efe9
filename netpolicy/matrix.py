"""Computes whether policy allows each port from every pod to every other pod."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from netpolicy.cluster import Cluster, ContainerPort, Pod
from netpolicy.evaluate import Evaluator
from netpolicy.party import Party, Traffic
from netpolicy.types import IPAddress, Protocol


class Cell(NamedTuple):
    """One question and its result. `source` and `destination` are namespace/name."""

    source: str
    destination: str
    port: int
    protocol: Protocol
    allowed: bool


def parse_ports(text: str) -> tuple[ContainerPort, ...]:
    """`80/tcp,81/udp,9000` -> ports; TCP if no protocol is given. Raises ValueError with a sentence."""
    return tuple(dict.fromkeys(parse_port(part.strip()) for part in text.split(",")))


def parse_port(text: str) -> ContainerPort:
    """`PORT[/PROTOCOL]` -> port. Raises ValueError with a sentence."""
    number, _, protocol = text.partition("/")
    name = protocol.upper() or "TCP"
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 65535:
        raise ValueError(f"port {text!r}: expected 1-65535, got {number!r}")
    if name not in tuple(Protocol):
        raise ValueError(f"port {text!r}: expected the protocol tcp, udp or sctp, got {protocol!r}")
    return ContainerPort(int(number), Protocol(name))


def matrix_for(cluster: Cluster, ports: Iterable[ContainerPort] | None = None) -> list[Cell]:
    """Cells for every ordered pair of different pods of the cluster, sorted by name.

    `ports` are checked for every destination; if None, each destination's own declared ports are. A pod may always
    reach itself, so these pairs are omitted. For a pod with several addresses each is checked; a cell is allowed if all
    are.
    """
    ordered = sorted(cluster.pods, key=str)
    asked = None if ports is None else tuple(ports)
    evaluator = Evaluator.of(cluster)
    return [
        Cell(str(source), str(destination), port.port, port.protocol, allowed)
        for source in ordered
        for destination in ordered
        if source is not destination
        for port, allowed in _answers(evaluator, source, destination, destination.ports if asked is None else asked)
    ]


def _answers(
    evaluator: Evaluator, source: Pod, destination: Pod, ports: Iterable[ContainerPort]
) -> Iterator[tuple[ContainerPort, bool]]:
    ends = parties(source, destination)
    # Ports that differ only in their names are one port.
    for port in {(port.port, port.protocol): port for port in ports}.values():
        traffic = Traffic(port.protocol, port.port)
        yield port, all(evaluator.verdict(*pair, traffic).allowed for pair in ends)


def parties(source: Pod, destination: Pod) -> list[tuple[Party, Party]]:
    """Both ends with addresses of one family, for each address of the destination that the source can reach.

    If they have no family in common, or no address is known, the first addresses that are known are used.
    """
    pairs: list[tuple[IPAddress | None, IPAddress | None]] = []
    for address in destination.ips:
        same = [own for own in source.ips if own.version == address.version]
        if same:
            pairs.append((same[0], address))
    if not pairs:
        pairs.append((next(iter(source.ips), None), next(iter(destination.ips), None)))
    return [(Party.of(source, own), Party.of(destination, address)) for own, address in pairs]


def as_json(cells: Iterable[Cell]) -> dict[str, list[dict[str, Any]]]:
    """The format that `lab probe --matrix` prints too."""
    return {
        "results": [
            {
                "from": cell.source,
                "to": cell.destination,
                "port": cell.port,
                "protocol": str(cell.protocol),
                "allowed": cell.allowed,
            }
            for cell in cells
        ]
    }


def differences(computed: Iterable[Cell], real: Mapping[tuple[str, str, int, str], bool]) -> list[Cell]:
    """Computed cells whose measured result (keyed by from, to, port, protocol) differs or is missing."""
    return [cell for cell in computed if real.get((*cell[:3], str(cell.protocol))) is not cell.allowed]
