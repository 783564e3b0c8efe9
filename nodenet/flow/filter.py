"""Hubble's FlowFilter: which flows a reader wants. `matcher` makes one test per flow of it. Pure.

Inside one filter every field that is set must match, and the values of a field are alternatives; filters of a list are
alternatives. Fields about things that this datapath does not record (HTTP, DNS, trace ids, SNAT) match no flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nodenet.flow.types import Workload


class FilterError(ValueError):
    """A filter that cannot be followed: `field` and what is wrong with its value."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name


class EventTypeMatch(NamedTuple):
    """An event type, and a sub-type when `match_sub_type`; type 0 is any."""

    type: int
    match_sub_type: bool = False
    sub_type: int = 0


class InterfaceMatch(NamedTuple):
    """A network interface by number, name, or both."""

    ifindex: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """The fields of flow.FlowFilter under the same names; empty ones do not count. TCP flags are bits of the header."""

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


@dataclass(frozen=True, slots=True)
class Origin:
    """What all flows of one agent share: its node, its cluster, and how it makes their uuids."""

    node_name: str = ""
    cluster_name: str = "default"
    node_labels: tuple[str, ...] = ()
    # The first 20 digits of every uuid; the flow's number makes the rest.
    uuid_prefix: str = "0" * 20

    def uuid(self, number: int) -> str:
        """A flow's uuid: unique for as long as the prefix is."""
        digits = self.uuid_prefix + f"{number & 0xFFFFFFFFFFFF:012x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
