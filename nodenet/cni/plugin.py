"""The verbs. ADD is a transaction: each step pushes its undoing, and whatever fails, the attachment leaves nothing.

What stays after a failed ADD is the node's own, shared by all pods: the bridge with its address, and forwarding.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nodenet.cni import conf as configuration
from nodenet.cni import ipam, result, wire
from nodenet.cni.conf import NetConf
from nodenet.cni.detach import Detacher
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Lease, Owner
from nodenet.cni.podcidrs import Networks, sets_of
from nodenet.cni.protocol import Reply
from nodenet.cni.ranges import RangeSet
from nodenet.cni.reboot import reclaim
from nodenet.cni.records import Record, Records
from nodenet.cni.request import Request
from nodenet.cni.resolv import read_resolv_conf
from nodenet.link import netns
from nodenet.link.handle import Interface, Link, LinkError
from nodenet.model import Endpoint, IPAddress

if TYPE_CHECKING:
    from nodenet.cni.delegate import Delegate

# Called with the name of each step before it is done. Tests fail it there.
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wired:
    """An attachment that is wired and recorded, as ADD hands it to the agent: with the rtnetlink sockets of the node
    and of the pod, and the addresses that the node is sure to have since."""

    endpoint: Endpoint
    node: Link
    pod: Link
    gateways: frozenset[IPAddress]


def nothing(what: object) -> None:
    """The hook of a node without an agent."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an agent adds. `healthy` says in a sentence what is wrong, or ""; `networks` are the node's pod networks. An
    ADD is wired inside `turn`; what it waits for in `enforce` is outside."""

    enforce: Callable[[Wired], None] = nothing
    forget: Callable[[Endpoint], None] = nothing
    healthy: Callable[[], str] = str
    networks: Networks | None = None
    turn: Callable[[], AbstractContextManager[object]] = nullcontext


ALONE = Hooks()
log = logging.getLogger("nodenet.cni")
STEPS = (
    *("begin", "lease", "bridge", "veth", "filters", "port", "pod"),
    *("routes", "settle", "endpoint-id", "record", "enforce", "done"),
)


@dataclass(frozen=True, slots=True)
class Added:
    """What ADD made: the endpoint, and the result to print."""

    endpoint: Endpoint
    stdout: str


@dataclass(frozen=True, slots=True)
class _Job:
    """One ADD under way: what was asked, and what is open for it."""

    conf: NetConf
    request: Request
    owner: Owner
    records: Records
    pod_netns: int
    pod: Link
    undo: ExitStack


class Plugin:
    """The verbs on one node: the one whose network namespace the calling thread is in.

    `run_dir` overrides the folder that the configuration's agentSocket names. Not for two threads at once.
    """

    def __init__(self, run_dir: Path | None = None, step: Step = lambda name: None) -> None:
        self._run_dir = run_dir
        self._step = step
        self._node: Link | None = None

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
            self._node = None

    @property
    def node(self) -> Link:
        """The node's rtnetlink socket, opened at first use and kept."""
        if self._node is None:
            self._node = Link()
        return self._node

    def add(self, request: Request, hooks: Hooks = ALONE) -> Added:
        """Attach a container. Raises CniError; then nothing of this attachment is left.

        `enforce` is called when all is made and recorded; what it raises undoes the ADD.
        """
        conf = configuration.parse(request.stdin, request.args)
        owner = Owner(request.container_id, request.ifname)
        records = self._records(conf)
        with ExitStack() as stack:
            stack.enter_context(_told("ADD", conf.name))
            pod_netns = stack.enter_context(_sandbox(request))
            sets = sets_of(conf, self._run(conf), hooks.networks)
            data_dir = conf.ipam.data_dir if conf.ipam else None
            crashed = stack.enter_context(
                records.busy(owner, network=conf.name, data_dir=data_dir, netns=request.netns)
            )
            pod = stack.enter_context(Link(pod_netns))
            undo = stack.enter_context(ExitStack())
            job = _Job(conf, request, owner, records, pod_netns, pod, undo)
            self._step("begin")
            job, leases = self._delegated(job) if conf.delegate else (job, None)
            with hooks.turn():
                if leases is None:
                    _refuse_second(job)
                    leases = self._lease(job, sets, search=crashed)
                added = self._wire(job, leases)
            self._step("enforce")
            gateways = frozenset(lease.gateway for lease in leases if lease.gateway) if conf.is_gateway else frozenset()
            hooks.enforce(Wired(added.endpoint, self.node, pod, gateways))
            self._step("done")
            undo.pop_all()
            return added

    def delete(self, request: Request, hooks: Hooks = ALONE) -> None:
        """Detach a container: also when the namespace, the lease, the record or all of it are gone already.

        `forget` is called when the wires are cut and before the addresses are given back to the pool: what it raises
        leaves them with their owner, for the DEL that the runtime tries again.
        """
        conf = configuration.parse(request.stdin, request.args, "DEL")
        owner = Owner(request.container_id, request.ifname)
        records = self._records(conf)
        data_dir = conf.ipam.data_dir if conf.ipam else None
        hints = [entry.address.ip for entry in conf.prev.addresses] if conf.prev else []
        with (
            _told("DEL", conf.name),
            records.busy(owner, network=conf.name, data_dir=data_dir, netns=request.netns) as crashed,
        ):
            detacher = self._detacher(conf, hooks)
            delegate = self._delegate(conf, request)
            detacher.detach(owner, conf.name, data_dir, request.netns, hints, crashed, conf.ip_masq, delegate)

    def check(self, request: Request) -> None:
        """Whether a container's attachment is as ADD left it. Raises CniError with code 106 that says what is not."""
        from nodenet.cni.check import check

        conf = configuration.parse(request.stdin, request.args, "CHECK")
        with _told("CHECK", conf.name), _sandbox(request) as pod_netns, Link(pod_netns) as pod:
            check(self.node, pod, self._records(conf), conf, request)

    def collect(self, request: Request, hooks: Hooks = ALONE) -> None:
        """Free what belongs to no attachment on the runtime's list. Raises CniError."""
        from nodenet.cni.collect import collect

        conf = configuration.parse(request.stdin, request.args, "GC")
        with _told("GC", conf.name):
            collect(self._detacher(conf, hooks), conf, request)

    def status(self, request: Request, hooks: Hooks = ALONE) -> None:
        """Raises CniError with code 50 or 51 when an ADD could not succeed now."""
        from nodenet.cni.status import status

        conf = configuration.parse(request.stdin, request.args, "STATUS")
        with _told("STATUS", conf.name):
            try:
                sets = sets_of(conf, self._run(conf), hooks.networks)
            except CniError as error:
                raise CniError(Code.NOT_AVAILABLE, str(error)) from error
            status(self.node, conf, sets, hooks.healthy, request)

    def run(self, request: Request, hooks: Hooks = ALONE) -> Reply:
        """One verb from request to reply; a CniError becomes the specification's JSON with exit status 1."""
        try:
            return Reply(0, self._dispatch(request, hooks).encode())
        except CniError as error:
            return configuration.failure(request.stdin, error)

    def _dispatch(self, request: Request, hooks: Hooks) -> str:
        match request.verb:
            case "ADD":
                return self.add(request, hooks).stdout
            case "DEL":
                self.delete(request, hooks)
            case "CHECK":
                self.check(request)
            case "GC":
                self.collect(request, hooks)
            case "STATUS":
                self.status(request, hooks)
            case _:
                return configuration.version_answer(request.stdin)
        return ""

    def _run(self, conf: NetConf) -> Path:
        return self._run_dir or conf.run_dir

    def _detacher(self, conf: NetConf, hooks: Hooks) -> Detacher:
        return Detacher(self.node, self._records(conf), self._run(conf), hooks.forget, self._step)

    def _records(self, conf: NetConf) -> Records:
        return Records(self._run(conf))

    def _delegate(self, conf: NetConf, request: Request) -> Delegate | None:
        if not conf.delegate:
            return None
        # Imported here and below: it is for those who have another IPAM plugin alone.
        from nodenet.cni.delegate import Delegate

        return Delegate.of(conf.delegate, request)

    def _delegated(self, job: _Job) -> tuple[_Job, list[Lease]]:
        """Addresses from another IPAM plugin, outside the agent's turns: it may take its time."""
        from nodenet.cni.delegate import lease

        _refuse_second(job)
        if job.pod.get(job.owner.ifname) is not None:
            # Looked for before the call: undoing that would take the address from whom the interface belongs to.
            message = f"namespace {job.request.netns} has an interface {job.owner.ifname} already"
            raise CniError(Code.INTERFACE_EXISTS, message)
        self._step("lease")
        conf, leases = lease(job.conf, job.request, job.undo)
        return replace(job, conf=conf), leases

    def _lease(self, job: _Job, sets: Sequence[RangeSet], search: bool) -> list[Lease]:
        self._step("lease")
        if job.conf.ipam is None:
            return []
        store = ipam.Store(job.conf.ipam.data_dir, job.conf.name, self._run(job.conf))
        reclaim(store)
        leases = ipam.allocate(store, job.owner, sets, job.conf.ipam.requested, search)
        job.undo.callback(_undone, ipam.release, store, job.owner, [lease.address.ip for lease in leases])
        return leases

    def _wire(self, job: _Job, leases: Sequence[Lease]) -> Added:
        conf, owner = job.conf, job.owner
        self._step("bridge")
        bridge = wire.ensure_bridge(self.node, conf, leases)
        mac = conf.mac or wire.pod_mac(leases)
        self._step("veth")
        host, inside = _create_pair(self.node, job, mac)
        self._step("filters")
        if conf.ip_masq or conf.mac_spoof_check:
            known = [lease.address.ip for lease in leases]
            job.undo.callback(_undone, wire.unfilter_port, conf.name, owner, known)
            wire.filter_port(conf, owner, mac, leases)
        self._step("port")
        wire.join_bridge(self.node, conf, host, bridge)
        self._step("pod")
        wire.configure_pod(job.pod, job.pod_netns, conf, inside, leases)
        self._step("routes")
        routes = wire.pod_routes(conf, leases)
        wire.add_routes(job.pod, inside.index, routes)
        self._step("settle")
        wire.settle(self.node, conf, host, job.pod_netns, owner.ifname)
        wire.tell_neighbours(job.pod_netns, inside, mac, leases)
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

    def _record(self, job: _Job, leases: Sequence[Lease], host: Interface, mac: str) -> Endpoint:
        self._step("endpoint-id")
        job.undo.callback(_undone, job.records.drop, job.owner)
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
        )
        self._step("record")
        delegate = self._delegate(job.conf, job.request)
        delegation = delegate.to_json() if delegate else ""
        data_dir = job.conf.ipam.data_dir if job.conf.ipam else None
        job.records.put(Record(endpoint, job.conf.name, data_dir, delegation))
        return endpoint


def _refuse_second(job: _Job) -> None:
    message = f"container {job.owner.container_id} has an interface {job.owner.ifname} already"
    try:
        record = job.records.get(job.owner)
    except ValueError as error:
        raise CniError(Code.INTERFACE_EXISTS, f"{message}: {error}", "DEL it first") from error
    if record is not None:
        raise CniError(Code.INTERFACE_EXISTS, message, "DEL it before another ADD")


def _create_pair(node: Link, job: _Job, mac: str) -> tuple[Interface, Interface]:
    """The node's end and the pod's. A pair that is there already is not this ADD's to remove: it may serve a pod whose
    record was lost."""
    taken: list[LinkError] = []

    def disconnect() -> None:
        if not taken:
            wire.disconnect(node, job.owner, "")

    job.undo.callback(_undone, disconnect)
    try:
        return wire.create_pair(node, job.conf, job.owner, job.pod_netns, mac)
    except LinkError as error:
        if error.code == errno.EEXIST:
            taken.append(error)
        if taken and job.pod.get(job.owner.ifname) is not None:
            message = f"namespace {job.request.netns} has an interface {job.owner.ifname} already"
            raise CniError(Code.INTERFACE_EXISTS, message) from error
        raise


@contextmanager
def _sandbox(request: Request) -> Iterator[int]:
    """The pod's namespace as an open file, checked: a network namespace, and not the node's own."""
    path = request.netns
    try:
        with netns.opened(path) as fd:
            if not netns.is_namespace(fd):
                raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS: {path} is not a network namespace")
            if netns.inode(fd) == netns.inode():
                raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS: {path} is the node's own network namespace")
            yield fd
    except FileNotFoundError as error:
        if error.filename is None or str(error.filename) != str(netns.path_of(path)):
            raise
        raise CniError(Code.UNKNOWN_CONTAINER, f"CNI_NETNS: {path} does not exist") from error


@contextmanager
def _told(verb: str, network: str) -> Iterator[None]:
    """Turn what the kernel and the file system refuse into the specification's errors."""
    try:
        yield
    except LinkError as error:
        raise CniError(Code.KERNEL_REFUSED, f"network {network}: {verb}: {error}") from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise CniError(Code.IO_FAILURE, f"network {network}: {verb}: {what}") from error


def _undone(function: Callable[..., object], *args: object) -> None:
    """Undo one step. What fails here must not keep the other steps from being undone, nor hide why ADD failed."""
    try:
        function(*args)
    except (OSError, LinkError) as error:
        log.warning("while undoing an ADD: %s", error)
