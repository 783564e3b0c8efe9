"""Computes what policy should do (the policy engine on the lab's objects), and reads what the agents did (their
flows)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from netpolicy import cluster, explain, matrix, objects
from netpolicy.evaluate import Evaluator
from netpolicy.holders import holders
from netpolicy.party import Party, Traffic
from netpolicy.types import Protocol
from nodenet.errors import NodenetError
from nodenet.flow.types import EventType
from nodenet.kinds import API_KINDS
from nodenet.lab import find
from nodenet.lab.client import LabClient
from nodenet.lab.pods import Port

Object = Mapping[str, Any]

# Seconds to wait for a flow on its way from the kernel to the agent's ring.
_FLOW_SECONDS = 0.5


def everything(client: LabClient) -> list[Object]:
    """All objects that affect connectivity: those of the kinds that agents watch."""
    custom = {resource.qualified: resource for resource in client.custom()}
    found: list[Object] = []
    for kind in API_KINDS:
        if not kind.optional:
            found += client.objects(kind.name)
        elif kind.resource.qualified in custom:
            found += client.listing(custom[kind.resource.qualified])[0]
    return found


def computed(all_objects: Iterable[Object], asked: Sequence[Port] | None) -> list[matrix.Cell]:
    """The matrix that the policies give for all pods with an address."""
    read = objects.cluster(all_objects, strict=False, live=True)
    ports = None if asked is None else [cluster.ContainerPort(p.number, Protocol(p.protocol)) for p in asked]
    running = tuple(pod for pod in read.pods if pod.ips)
    return matrix.matrix_for(replace(read, pods=running), ports)


def differences(wanted: Iterable[matrix.Cell], real: Iterable[matrix.Cell]) -> list[str]:
    """A sentence for each cell in which policy and probe differ."""
    seen = {(*cell[:3], str(cell.protocol)): cell.allowed for cell in real}
    words = {True: "allowed", False: "denied", None: "not tried"}
    return [
        f"{c.source} -> {c.destination} {c.port}/{c.protocol}: policy says {words[c.allowed]}, "
        f"the probe was {words[seen.get((c.source, c.destination, c.port, str(c.protocol)))]}"
        for c in matrix.differences(wanted, seen)
    ]


def explanation(all_objects: Iterable[Object], source: Object, destination: Object | str, port: Port) -> dict[str, Any]:
    """netpolicy's explanation as JSON-compatible data, for traffic from a pod to another pod or to an address."""
    read = objects.cluster(all_objects, strict=False, live=True)
    by_name = {str(pod): pod for pod in read.pods}
    source_pod = by_name[find.full_name(source)]
    if isinstance(destination, str):
        target = _party(read, destination)
        address = target.address
    else:
        other = by_name[find.full_name(destination)]
        address = next((ip for ip in other.ips if ip.version in {own.version for own in source_pod.ips}), None)
        target = Party.of(other, address)
    own = next((ip for ip in source_pod.ips if address is None or ip.version == address.version), None)
    traffic = Traffic(Protocol(port.protocol), port.number)
    evaluator = Evaluator.of(read)
    return explain.as_json(explain.explain(evaluator, Party.of(source_pod, own), target, traffic))


def outside(all_objects: Iterable[Object], address: str) -> bool:
    """True if `address` belongs to no pod and no node of the lab."""
    read = objects.cluster((obj for obj in all_objects if obj["kind"] in ("Pod", "Node")), strict=False)
    own = {ip for pod in read.pods for ip in pod.ips} | {ip for node in read.nodes for ip in node.addresses}
    return ip_address(address) not in own


def _party(read: cluster.Cluster, text: str) -> Party:
    """The pod or node with this address, or a party outside the cluster."""
    address = ip_address(text)
    pod = holders(read.pods).get(address)
    if pod is not None:
        return Party.of(pod, address)
    for node in read.nodes:
        if address in node.addresses:
            return Party(node.name, address=address, node=node.name, host=True)
    return Party(text, address=address)


@dataclass(frozen=True, slots=True)
class Drop:
    """One dropped flow that an agent reports."""

    node: str
    direction: str
    reason: str
    policies: tuple[str, ...]

    def __str__(self) -> str:
        by = f" by {', '.join(self.policies)}" if self.policies else ""
        return f"{self.node} dropped it on {self.direction.lower()}: {self.reason}{by}"


def drops(sockets: Mapping[str, Path], source: Sequence[str], address: str, port: int, since_ns: int) -> list[Drop]:
    """The flows of this connection that agents dropped since `since_ns`. Agents that do not answer are skipped, because
    this information is optional."""
    return asyncio.run(_drops(sockets, source, address, port, since_ns))


async def _drops(sockets: Mapping[str, Path], source: Sequence[str], address: str, port: int, since: int) -> list[Drop]:
    deadline = time.monotonic() + _FLOW_SECONDS
    while True:
        asked = await asyncio.gather(*(_ask(path, source, address, port, since) for path in sockets.values()))
        found = list(dict.fromkeys(drop for drops in asked for drop in drops))
        if found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)


async def _ask(path: Path, source: Sequence[str], address: str, port: int, since: int) -> list[Drop]:
    from nodenet.rpc.client import Client
    from nodenet.rpc.pb.flow import flow_pb2
    from nodenet.rpc.pb.observer import observer_pb2

    only = flow_pb2.FlowFilter(
        source_ip=source,
        destination_ip=[address],
        destination_port=[str(port)],
        verdict=[flow_pb2.DROPPED],
        # A packet that policy denies has a policy verdict too.
        event_type=[flow_pb2.EventTypeFilter(type=int(EventType.DROP))],
    )
    request = observer_pb2.GetFlowsRequest(number=20, whitelist=[only])
    request.since.FromNanoseconds(since)
    try:
        async with Client(str(path)) as client:
            answers = [answer async for answer in client.get_flows(request)]
    except NodenetError:
        return []
    return [_drop(answer.flow, flow_pb2) for answer in answers if answer.HasField("flow")]


def _drop(flow: Any, flow_pb2: Any) -> Drop:
    denied = [*flow.egress_denied_by, *flow.ingress_denied_by]
    return Drop(
        # Without the cluster: the lab is known.
        flow.node_name.rpartition("/")[2],
        flow_pb2.TrafficDirection.Name(flow.traffic_direction),
        flow_pb2.DropReason.Name(flow.drop_reason_desc),
        tuple(
            f"{policy.namespace}/{policy.name}" if policy.namespace else f"{policy.kind} {policy.name}"
            for policy in denied
        ),
    )
