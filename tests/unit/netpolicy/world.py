"""Pods as plain data, and what the compiler makes of them: shared by the tests of this folder.

A pod is {"namespace", "name", "labels", "ip", "ports": [[port, protocol, name], ...]}, as in the oracle's tables. The
number of its endpoint is its place, or its "number".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from netpolicy.cluster import ContainerPort, Node
from netpolicy.cluster import Pod as PolicyPod
from netpolicy.nodes import with_addresses
from netpolicy.parse import network_policy
from netpolicy.parse_cluster import cluster_policy
from netpolicy.types import ClusterPolicy, Policy
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.abi import U32, AddressKey, EndpointEntry, LpmKey, Record
from nodenet.compile.ids import Ids
from nodenet.compile.policy import PolicyTables
from nodenet.model import NamedPort, ObjectRef, Pod
from tests.unit.compile.build import compile_policy
from tests.unit.netpolicy.datapath import Datapath

Obj = dict[str, Any]


def policy_pod(pod: Obj) -> PolicyPod:
    ports = [ContainerPort(port, PolicyProtocol(protocol), name) for port, protocol, name in pod["ports"]]
    return PolicyPod.of(pod["namespace"], pod["name"], pod["labels"], [ipaddress.ip_address(pod["ip"])], ports)


def model_pod(pod: Obj) -> Pod:
    return Pod(
        ObjectRef(pod["namespace"], pod["name"]),
        "uid",
        pod["labels"],
        ips=(ipaddress.ip_address(pod["ip"]),),
        phase="Running",
        named_ports=tuple(
            NamedPort(name, PolicyProtocol(protocol), port) for port, protocol, name in pod["ports"] if name
        ),
    )


def compiled(
    pods: list[Obj],
    namespaces: dict[str, dict[str, str]],
    policies: list[Obj],
    ids: Ids | None = None,
    nodes: Iterable[Node] = (),
) -> PolicyTables:
    """Every pod is an endpoint of one node. `nodes`: those whose addresses rules may name."""
    models = {ref_of(pod): model_pod(pod) for pod in pods}
    found = [parsed(policy) for policy in policies]
    enforced = [with_addresses(policy, nodes) if isinstance(policy, ClusterPolicy) else policy for policy in found]
    return compile_policy(models, namespaces, enforced, list(models), ids or Ids())


def parsed(policy: Obj) -> Policy:
    return cluster_policy(policy) if policy.get("kind") == "ClusterNetworkPolicy" else network_policy(policy)


def tables_of(pods: list[Obj], compiled_policy: PolicyTables) -> dict[str, dict[Record, Record]]:
    """All four maps that decide."""
    endpoints: dict[Record, Record] = {}
    ipcache: dict[Record, Record] = {}
    for place, pod in enumerate(pods, 1):
        number = pod.get("number", place)
        identity = compiled_policy.identities[ref_of(pod)]
        ip = ipaddress.ip_address(pod["ip"])
        flags = compiled_policy.flags[identity]
        endpoints[AddressKey(ip)] = EndpointEntry(number, identity, number, int(flags), "02:00:00:00:00:01")
        ipcache[LpmKey.host(ip)] = U32(identity)
    return {
        "nn_endpoint": endpoints,
        "nn_ipcache": ipcache,
        "nn_policy": dict(compiled_policy.policy),
        "nn_cidr": dict(compiled_policy.cidr),
    }


def datapath_of(pods: list[Obj], compiled_policy: PolicyTables) -> Datapath:
    datapath = Datapath()
    datapath.load(tables_of(pods, compiled_policy))
    return datapath


def ref_of(pod: Obj) -> ObjectRef:
    return ObjectRef(pod["namespace"], pod["name"])
