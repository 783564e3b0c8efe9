"""Hubble's FlowFilter, which selects the flows that a reader wants. `matcher` compiles it into a test. Pure.

In one filter all fields that are set must match; the values of a field are alternatives, and so are the filters of a
list. Fields that this datapath does not record (HTTP, DNS, trace ids, SNAT) match no flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nodenet.flow.types import Workload

DEFAULT_CLUSTER = "default"


class FilterError(ValueError):
    """An invalid filter. `field` is the name of the invalid field."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name


class EventTypeMatch(NamedTuple):
    """An event type. The sub-type counts only if `match_sub_type`. Type 0 matches any type."""

    type: int
    match_sub_type: bool = False
    sub_type: int = 0


class InterfaceMatch(NamedTuple):
    """A network interface by index, name, or both."""

    ifindex: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """The fields of flow.FlowFilter under the same names; empty fields are ignored. TCP flags are the bits of the
    header."""

    uuid: tuple[str, ...] = ()
    source_ip: tuple[str, ...] = ()
    source_ip_xlated: tuple[str, ...] = ()
    source_pod: tuple[str, ...] = ()
    source_fqdn: tuple[str, ...] = ()
    source_label: tuple[str, ...] = ()
    source_service: tuple[str, ...] = ()
    source_workload: tuple[Workload, ...] = ()
    source_cluster_name: tuple[str, ...] = ()
    destination_ip: tuple[str, ...] = ()
    destination_pod: tuple[str, ...] = ()
    destination_fqdn: tuple[str, ...] = ()
    destination_label: tuple[str, ...] = ()
    destination_service: tuple[str, ...] = ()
    destination_workload: tuple[Workload, ...] = ()
    destination_cluster_name: tuple[str, ...] = ()
    traffic_direction: tuple[int, ...] = ()
    verdict: tuple[int, ...] = ()
    drop_reason_desc: tuple[int, ...] = ()
    interface: tuple[InterfaceMatch, ...] = ()
    event_type: tuple[EventTypeMatch, ...] = ()
    http_status_code: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    source_port: tuple[str, ...] = ()
    destination_port: tuple[str, ...] = ()
    reply: tuple[bool, ...] = ()
    dns_query: tuple[str, ...] = ()
    source_identity: tuple[int, ...] = ()
    destination_identity: tuple[int, ...] = ()
    http_method: tuple[str, ...] = ()
    http_path: tuple[str, ...] = ()
    http_url: tuple[str, ...] = ()
    http_header: tuple[tuple[str, str], ...] = ()
    tcp_flags: tuple[int, ...] = ()
    node_name: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    ip_version: tuple[int, ...] = ()
    trace_id: tuple[str, ...] = ()
    ip_trace_id: tuple[int, ...] = ()
    encrypted: tuple[bool, ...] = ()


def full_name(node: str, cluster: str) -> str:
    """The name of a node in Hubble's messages: with its cluster, unless that has the default name."""
    return node if cluster in ("", DEFAULT_CLUSTER) else f"{cluster}/{node}"


@dataclass(frozen=True, slots=True)
class Origin:
    """The node and cluster of all flows of one agent, and the prefix of their UUIDs."""

    node_name: str = ""
    cluster_name: str = DEFAULT_CLUSTER
    node_labels: tuple[str, ...] = ()
    # The first 20 hexadecimal digits of every UUID; the flow's number supplies the others.
    uuid_prefix: str = "0" * 20

    @property
    def full_node_name(self) -> str:
        """The node's name as Hubble writes it."""
        return full_name(self.node_name, self.cluster_name)

    def uuid(self, number: int) -> str:
        """A flow's UUID. It is unique if the prefix is."""
        digits = self.uuid_prefix + f"{number & 0xFFFFFFFFFFFF:012x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
