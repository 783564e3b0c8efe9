"""ADD as a transaction: each step registers how to undo it, and a failed ADD removes everything that it created.

Only resources that all pods share stay after a failed ADD: the bridge with its address, and forwarding.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from nodenet.cni import ipam, podcidrs, podpool, result, wire
from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.hooks import Hooks, Wired
from nodenet.cni.ipam import Lease, Owner
from nodenet.cni.ranges import RangeSet
from nodenet.cni.reboot import reclaim
from nodenet.cni.records import Record, Records
from nodenet.cni.request import Request
from nodenet.cni.resolv import read_resolv_conf
from nodenet.endpoint import Endpoint
from nodenet.errors import NodenetError
from nodenet.link.handle import Interface, Link, LinkError

# Called with the name of each step before the step runs. Tests make it fail there.
Step = Callable[[str], None]
log = logging.getLogger("nodenet.cni")
STEPS = (
    *("begin", "lease", "bridge", "veth", "filters", "port", "pod"),
    *("routes", "settle", "endpoint-id", "record", "enforce", "done"),
)


@dataclass(frozen=True, slots=True)
class Added:
    """The outcome of ADD: the endpoint, and the result to print."""

    endpoint: Endpoint
    stdout: str


@dataclass(frozen=True, slots=True)
class Job:
    """One running ADD: the request, the open resources, and the steps to undo if it fails."""

    conf: NetConf
    request: Request
    owner: Owner
    records: Records
    pod_netns: int
    pod: Link
    undo: ExitStack


@dataclass(frozen=True, slots=True)
class Attacher:
    """The parts that every attachment on this node uses."""

    node: Link
    run_dir: Path
    hooks: Hooks
    step: Step = lambda name: None

    def attach(self, job: Job, sets: Sequence[RangeSet], crashed: bool) -> tuple[Added, Wired]:
        """Create the attachment up to the point where an agent enforces policy on it. The caller must hold it
        (Records.busy). Addresses come from `sets`, unless another plugin assigns them. `crashed`: a verb was killed,
        so leases of the owner may exist. The steps to undo are on `job.undo`. Raises CniError, OSError, LinkError."""
        self.step("begin")
        self.hooks.require_wanted()
        job, leases = self._delegated(job) if job.conf.delegate else (job, None)
        # Duplicate address detection takes over a second, so do not block other ADDs meanwhile.
        with nullcontext() if job.conf.enable_dad else self.hooks.turn():
            if leases is None:
                _refuse_second(job)
                leases = self._lease(job, sets, search=crashed)
            added = self._wire(job, leases)
        is_gateway = job.conf.is_gateway
        gateways = frozenset(lease.gateway for lease in leases if lease.gateway) if is_gateway else frozenset()
        return added, Wired(added.endpoint, self.node, job.pod, gateways)

    def _delegated(self, job: Job) -> tuple[Job, list[Lease]]:
        """Get addresses from another IPAM plugin. This may take long, so it happens outside the agent's `turn`."""
        # Imported here and below: only configurations with another IPAM plugin need it.
        from nodenet.cni.delegate import lease

        _refuse_second(job)
        if job.pod.get(job.owner.ifname) is not None:
            # Check this before the call: undoing the call would release the address of the existing interface.
            message = f"namespace {job.request.netns} already has an interface {job.owner.ifname}"
            raise CniError(Code.INTERFACE_EXISTS, message)
        self.step("lease")
        conf, leases = lease(job.conf, job.request, job.undo)
        return replace(job, conf=conf), leases

    def _lease(self, job: Job, sets: Sequence[RangeSet], search: bool) -> list[Lease]:
        self.step("lease")
        if job.conf.ipam is None:
            return []
        store = ipam.Store(job.conf.ipam.data_dir, job.conf.name, self.run_dir)
        reclaim(store)
        pods = podcidrs.known(self.run_dir, self.hooks.networks)
        with podpool.elsewhere(store, self.run_dir, sets, pods) as taken:
            leases = ipam.allocate(store, job.owner, sets, job.conf.ipam.requested, search, taken)
        job.undo.callback(_undo_step, ipam.release, store, job.owner, [lease.address.ip for lease in leases])
        return leases

    def _wire(self, job: Job, leases: Sequence[Lease]) -> Added:
        conf, owner = job.conf, job.owner
        self.step("bridge")
        bridge = wire.ensure_bridge(self.node, conf, leases)
        mac = conf.mac or wire.pod_mac(leases)
        self.step("veth")
        host, inside = _create_pair(self.node, job, mac)
        self.step("filters")
        if conf.ip_masq or conf.mac_spoof_check:
            known = [lease.address.ip for lease in leases]
            job.undo.callback(_undo_step, wire.unfilter_port, conf.name, owner, known)
            wire.filter_port(conf, owner, mac, leases)
        self.step("port")
        wire.join_bridge(self.node, conf, host, bridge)
        self.step("pod")
        wire.configure_pod(job.pod, job.pod_netns, conf, inside, leases)
        self.step("routes")
        routes = wire.pod_routes(conf, leases)
        wire.add_routes(job.pod, inside.index, routes)
        self.step("settle")
        wire.settle(self.node, conf, host, job.pod_netns, owner.ifname)
        wire.announce_addresses(job.pod_netns, inside, mac, leases)
        endpoint = self._record(job, leases, host, mac)
        interfaces = (
            result.ResultInterface(bridge.name, bridge.mac, mtu=bridge.mtu),
            result.ResultInterface(host.name, host.mac, mtu=host.mtu),
            result.ResultInterface(owner.ifname, mac, sandbox=job.request.netns, mtu=inside.mtu),
        )
        resolv_conf = conf.ipam.resolv_conf if conf.ipam else None
        dns = conf.dns or (read_resolv_conf(resolv_conf) if resolv_conf else {})
        before = conf.prev.raw if conf.prev else {}
        made = result.Result(interfaces, 2, leases, routes, dns, before)
        return Added(endpoint, made.to_json(conf.cni_version))

    def _record(self, job: Job, leases: Sequence[Lease], host: Interface, mac: str) -> Endpoint:
        self.step("endpoint-id")
        job.undo.callback(_undo_step, job.records.drop, job.owner)
        endpoint = Endpoint(
            endpoint_id=job.records.allocate_id(job.owner),
            container_id=job.owner.container_id,
            ifname=job.owner.ifname,
            netns=job.request.netns,
            host_ifname=host.name,
            host_ifindex=host.index,
            mac=mac,
            ips=tuple(lease.address.ip for lease in leases),
            pod=job.request.pod,
            pod_uid=job.request.pod_uid,
            bridged=bool(job.conf.vlan or job.conf.trunk or job.conf.port_isolation),
            bridge=job.conf.bridge,
            hairpin=job.conf.hairpin,
        )
        self.step("record")
        data_dir = job.conf.ipam.data_dir if job.conf.ipam else None
        job.records.put(Record(endpoint, job.conf.name, data_dir, _delegation(job)))
        return endpoint


def _delegation(job: Job) -> str:
    """For the record: how to release the addresses of another IPAM plugin."""
    if not job.conf.delegate:
        return ""
    from nodenet.cni.delegate import Delegate

    return Delegate.of(job.conf.delegate, job.request).to_json()


def _refuse_second(job: Job) -> None:
    message = f"container {job.owner.container_id} already has an interface {job.owner.ifname}"
    try:
        record = job.records.get(job.owner)
    except ValueError as error:
        raise CniError(Code.INTERFACE_EXISTS, f"{message}: {error}", "DEL it first") from error
    if record is not None:
        raise CniError(Code.INTERFACE_EXISTS, message, "DEL it before another ADD")


def _create_pair(node: Link, job: Job, mac: str) -> tuple[Interface, Interface]:
    """Create the pair and return the node's end and the pod's. If the pair already exists, undoing this ADD must not
    remove it: it may serve a pod whose record was lost."""
    taken: list[LinkError] = []

    def disconnect() -> None:
        if not taken:
            wire.disconnect(node, job.owner, "")

    job.undo.callback(_undo_step, disconnect)
    try:
        return wire.create_pair(node, job.conf, job.owner, job.pod_netns, mac)
    except LinkError as error:
        if error.code == errno.EEXIST:
            taken.append(error)
        if taken and job.pod.get(job.owner.ifname) is not None:
            message = f"namespace {job.request.netns} already has an interface {job.owner.ifname}"
            raise CniError(Code.INTERFACE_EXISTS, message) from error
        raise


def _undo_step(function: Callable[..., object], *args: object) -> None:
    """Undo one step. A failure here must neither prevent the other steps from being undone nor hide why ADD failed."""
    try:
        function(*args)
    except (OSError, NodenetError) as error:
        log.warning("while undoing an ADD: %s", error)
