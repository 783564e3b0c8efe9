"""The verbs: from a request to the output. attach.py and detach.py work on one attachment."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nodenet.cni import conf as configuration
from nodenet.cni import podcidrs
from nodenet.cni.attach import Added, Attacher, Job, Step
from nodenet.cni.conf import NetConf
from nodenet.cni.detach import Detacher
from nodenet.cni.errors import CniError, Code
from nodenet.cni.hooks import NO_AGENT, Hooks, Wired
from nodenet.cni.owner import Owner
from nodenet.cni.podcidrs import sets_of
from nodenet.cni.podmtu import with_mtu
from nodenet.cni.protocol import Reply
from nodenet.cni.records import Records
from nodenet.cni.request import Request
from nodenet.link import netns
from nodenet.link.handle import Link, LinkError

if TYPE_CHECKING:
    from nodenet.cni.delegate import Delegate

log = logging.getLogger("nodenet.cni")
# An ADD that yields once, for the agent's part, and returns its result.
Adding = Generator[Wired, None, Added]


class Plugin:
    """The verbs on the node whose network namespace the calling thread is in.

    `run_dir` overrides the folder of the configuration's agentSocket. Not thread-safe.
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
        """The node's rtnetlink socket, opened at first use and then kept."""
        if self._node is None:
            self._node = Link()
        return self._node

    def add(self, request: Request, hooks: Hooks = NO_AGENT) -> Added:
        """Attach a container. Raises CniError; nothing of this attachment is left then."""
        steps = self.adding(request, hooks)
        next(steps)
        try:
            next(steps)
        except StopIteration as end:
            added: Added = end.value
            return added
        raise AssertionError("an ADD has one stop")

    def adding(self, request: Request, hooks: Hooks = NO_AGENT) -> Adding:
        """ADD that yields once, when everything is created and recorded: the agent does its part there.

        An exception thrown into the generator there undoes the ADD. Another thread may continue the generator, in the
        same network namespace, while this Plugin does nothing else. Raises CniError; nothing of this attachment is left
        then.
        """
        conf = configuration.parse(request.stdin, request.args)
        conf = with_mtu(conf, self._run(conf), hooks.mtu)
        owner = Owner(request.container_id, request.ifname)
        records = self._records(conf)
        with ExitStack() as stack:
            stack.enter_context(_as_cni_errors("ADD", conf.name))
            pod_netns = stack.enter_context(_sandbox(request))
            sets = sets_of(conf, self._run(conf), hooks.networks)
            data_dir = conf.ipam.data_dir if conf.ipam else None
            crashed = stack.enter_context(
                records.busy(owner, network=conf.name, data_dir=data_dir, netns=request.netns)
            )
            pod = stack.enter_context(Link(pod_netns))
            undo = stack.enter_context(ExitStack())
            job = Job(conf, request, owner, records, pod_netns, pod, undo)
            attacher = Attacher(self.node, self._run(conf), hooks, self._step)
            added, wired = attacher.attach(job, sets, crashed)
            self._step("enforce")
            yield wired
            self._step("done")
            undo.pop_all()
            return added

    def delete(self, request: Request, hooks: Hooks = NO_AGENT) -> None:
        """Detach a container, even if the namespace, the lease, the record or all of them are already gone.

        `hooks.forget` is called after the veth is removed and before the addresses are released. If it raises, the
        addresses stay leased until the runtime retries the DEL.
        """
        conf = configuration.parse(request.stdin, request.args, "DEL")
        owner = Owner(request.container_id, request.ifname)
        records = self._records(conf)
        data_dir = conf.ipam.data_dir if conf.ipam else None
        hints = [entry.address.ip for entry in conf.prev.addresses] if conf.prev else []
        with (
            _as_cni_errors("DEL", conf.name),
            records.busy(owner, network=conf.name, data_dir=data_dir, netns=request.netns) as crashed,
        ):
            detacher = self._detacher(conf, hooks)
            delegate = self._delegate(conf, request)
            detacher.detach(owner, conf.name, data_dir, request.netns, hints, crashed, conf.ip_masq, delegate)

    def check(self, request: Request) -> None:
        """Check that a container's attachment is unchanged since ADD. Raises CniError with code 106 that lists the
        differences."""
        from nodenet.cni.check import check

        conf = configuration.parse(request.stdin, request.args, "CHECK")
        with _as_cni_errors("CHECK", conf.name), _sandbox(request) as pod_netns, Link(pod_netns) as pod:
            check(self.node, pod, self._records(conf), conf, request)

    def collect(self, request: Request, hooks: Hooks = NO_AGENT) -> None:
        """Free the resources of attachments that are not on the runtime's list. Raises CniError."""
        from nodenet.cni.collect import collect

        conf = configuration.parse(request.stdin, request.args, "GC")
        with _as_cni_errors("GC", conf.name):
            collect(self._detacher(conf, hooks), conf, request)

    def status(self, request: Request, hooks: Hooks = NO_AGENT) -> None:
        """Raises CniError with code 50 or 51 if an ADD would fail now."""
        from nodenet.cni.status import status

        conf = configuration.parse(request.stdin, request.args, "STATUS")
        with _as_cni_errors("STATUS", conf.name):
            try:
                sets = sets_of(conf, self._run(conf), hooks.networks)
            except CniError as error:
                raise CniError(Code.NOT_AVAILABLE, str(error)) from error
            status(self.node, conf, sets, podcidrs.known(self._run(conf), hooks.networks), hooks.healthy, request)

    def run(self, request: Request, hooks: Hooks = NO_AGENT) -> Reply:
        """Run one verb. A CniError becomes the JSON of the specification with exit status 1."""
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
        # Imported here: only configurations with another IPAM plugin need it.
        from nodenet.cni.delegate import Delegate

        return Delegate.of(conf.delegate, request)


@contextmanager
def _sandbox(request: Request) -> Iterator[int]:
    """Opens the pod's namespace and checks that it is a network namespace and not the node's own. Raises CniError."""
    path = request.netns
    try:
        with netns.opened(path) as fd:
            if not netns.is_namespace(fd):
                raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS: {path} is not a network namespace")
            if netns.inode(fd) == netns.inode():
                raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS: {path} is the node's own network namespace")
            yield fd
    except FileNotFoundError as error:
        # A missing file in the body of the `with` statement is another error.
        if error.filename is None or str(error.filename) != str(netns.path_of(path)):
            raise
        raise CniError(Code.UNKNOWN_CONTAINER, f"CNI_NETNS: {path} does not exist") from error


@contextmanager
def _as_cni_errors(verb: str, network: str) -> Iterator[None]:
    """Convert errors of the kernel and the file system into errors of the specification."""
    try:
        yield
    except LinkError as error:
        raise CniError(Code.KERNEL_REFUSED, f"network {network}: {verb}: {error}") from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise CniError(Code.IO_FAILURE, f"network {network}: {verb}: {what}") from error
