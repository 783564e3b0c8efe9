"""The two ends of a connection, and its protocol and port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from netpolicy.cluster import Pod
from netpolicy.types import Direction, IPAddress, LabelSet, Protocol


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection. `labels` None: policy cannot select it (an outside address, a node).

    `host`: a node's own address or a hostNetwork pod, on `node` if that is known. `address` None: not known.
    """

    name: str
    labels: LabelSet | None = None
    address: IPAddress | None = None
    node: str = ""
    host: bool = False

    @classmethod
    def of(cls, pod: Pod, address: IPAddress | None) -> Party:
        return cls(str(pod), None if pod.host_network else pod.labels, address, pod.node, pod.host_network)


class Traffic(NamedTuple):
    """The protocol and port of the question. `protocol` None: not a protocol that a rule can name (ICMP); `port` is
    0 then."""

    protocol: Protocol | None
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" if self.protocol else "ICMP"


class Question(NamedTuple):
    """What a tier is asked: one direction of a connection, for the pod whose policies decide.

    `subject`: its labels. `other`: the other end. `destination`: the labels of the end that was called, whose port
    names count; None if it is no pod.
    """

    direction: Direction
    subject: LabelSet
    other: Party
    destination: LabelSet | None
    traffic: Traffic
