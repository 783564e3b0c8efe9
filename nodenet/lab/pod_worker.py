"""Runs one pod on its node, from binding to removal: creates sandbox and network, starts the stand-in, sets the status,
and removes everything at the end.

Policies and the backends of Services are the agent's work. The agent sees pods only through the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nodenet.backoff import Backoff
from nodenet.errors import NodenetError
from nodenet.lab import cluster_dns, pods, process
from nodenet.lab.cni_runtime import Attachment, Runtime
from nodenet.lab.layout import NodePlan
from nodenet.lab.pod_events import now
from nodenet.lab.sandbox import STAND_IN, Sandbox
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

Object = dict[str, Any]
Ref = tuple[str, str]

BACKOFF_FIRST = 1.0
BACKOFF_MOST = 10.0
# Reasons of Events that have another word than the pod's status.
_REASONS = {"CrashLoopBackOff": "BackOff"}


class PodApi(Protocol):
    """The parts of the API that a kubelet needs."""

    def pods(self, node: str) -> AsyncIterator[tuple[bool, Object]]:
        """Yields (exists, pod) for every pod bound to the node, now and after each change. Endless."""
        ...

    async def set_status(self, pod: Object, status: Mapping[str, Any]) -> None:
        """Merge into the pod's status. Does nothing if the pod (by uid) no longer exists, or if a test sets its status
        (pods.manual_status)."""
        ...

    async def warn(self, pod: Object, reason: str, message: str, node: str) -> None:
        """Record an Event: the pod does not start, or not again."""
        ...

    async def finish_deletion(self, pod: Object) -> None:
        """The last step: delete the object. Does nothing if it no longer exists."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the pods of a node share. `network_ready` is set while CNI may be called on the node. `slots` limits how
    many pods of the whole lab are created at the same time. `dns`: the program of the cluster's DNS pods."""

    lab: str
    node: NodePlan
    api: PodApi
    runtime: Runtime
    network_ready: asyncio.Event
    slots: asyncio.Semaphore
    dns: Sequence[str] = ()


class PodWorker:
    """The worker of one pod (by uid)."""

    def __init__(self, here: Surroundings, pod: Object) -> None:
        metadata = pod["metadata"]
        self.pod = pod
        self.uid: str = metadata["uid"]
        self.ref: Ref = (metadata["namespace"], metadata["name"])
        # The task of an earlier pod with the same name. This one needs its namespace and cgroup, so it waits for it.
        self.before: asyncio.Task[None] | None = None
        self._here = here
        self._ending = asyncio.Event()
        self._over = asyncio.Event()
        # The status as the kubelet would set it. The API has another one while a test sets it (pods.manual_status).
        self._status: Mapping[str, Any] = {}
        # Like a restarted kubelet, count the container starts that the pod's status reports.
        self._restarts = pods.restarts(pod)
        self._sandbox = Sandbox(here.lab, here.node.name, self.ref, host_network=pods.host_network(pod))
        self._attached = False

    def __str__(self) -> str:
        return "/".join(self.ref)

    def update(self, pod: Object, *, ending: bool) -> bool:
        """Take the new state of the object. Returns True if a test no longer sets the status: then call
        `restore_status`."""
        released = pods.manual_status(self.pod) and not pods.manual_status(pod)
        self.pod = pod
        if ending:
            self._ending.set()
        if pods.end_phase(pod):
            self._over.set()
        return released

    async def restore_status(self) -> None:
        """Write the real status over the one that a test has set."""
        await self._here.api.set_status(self.pod, {"phase": "Pending", "reason": None, "message": None, **self._status})

    @property
    def attachment(self) -> Attachment | None:
        """The attachment that must be detached, or None if the pod has none."""
        return self._attachment() if self._attached else None

    @property
    def netns(self) -> Path | None:
        """The path of the pod's network namespace; None if it uses the node's."""
        return None if self._sandbox.host_network else self._sandbox.netns

    async def run(self) -> None:
        """Run the pod until it is removed. Errors appear in the pod's status and in the log. They do not stop the
        kubelet."""
        if self.before is not None:
            await asyncio.wait([self.before])
        await self._run_until(self._run_containers, self._over, self._ending)
        if self._over.is_set() and not self._ending.is_set():
            # A finished pod keeps its object, with its addresses in the status, but other pods may get the addresses.
            await self._retried_quietly(self._take_down)
            phase = pods.end_phase(self.pod) or "Failed"
            await self._set_status(pods.finished_status(self.pod, now(), phase, self._restarts))
        await self._ending.wait()
        await self._retried_quietly(self._take_down)
        log.info("%s: removed", self)
        await self._here.api.finish_deletion(self.pod)

    async def _run_until(self, step: Callable[[], Coroutine[Any, Any, None]], *events: asyncio.Event) -> None:
        """Run `step` until one of the events is set or this task is cancelled."""
        running = asyncio.create_task(step(), name=f"run {self}")
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait([running, *waiting], return_when=asyncio.FIRST_COMPLETED)
            if running.done() and not running.cancelled() and running.exception() is not None:
                log.error("%s: unexpected error", self, exc_info=running.exception())
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, *waiting):
                task.cancel()
            await asyncio.wait([running])

    async def _run_containers(self) -> None:
        if pods.without_sandbox(self.pod) or (pods.finished(self.pod) and not pods.manual_status(self.pod)):
            return
        if self._restarts:
            await self._wait_for("")
        ips = await self._retried("FailedCreatePodSandBox", self._attach)
        while True:
            server = await self._retried("CrashLoopBackOff", self._start)
            node_ips = [interface.ip for interface in self._here.node.addresses]
            running = pods.running_status(self.pod, now(), ips, node_ips, self._sandbox.container_id, self._restarts)
            await self._set_status(running)
            log.info("%s: running at %s", self, ", ".join(map(str, ips)))
            status = await process.wait(server)
            self._restarts += 1
            log.warning("%s: stand-in ended with %s", self, status)
            message = f"the stand-in server ended with exit status {status}"
            await self._wait_for(message, "CrashLoopBackOff")
            await self._warn("BackOff", message)
            await asyncio.sleep(BACKOFF_FIRST)

    async def _attach(self) -> tuple[IPAddress, ...]:
        """Create the sandbox and call CNI ADD. After a failure it can be called again."""
        await asyncio.to_thread(self._sandbox.create)
        if self._sandbox.host_network:
            return tuple(interface.ip for interface in self._here.node.addresses)
        if not self._here.network_ready.is_set():
            message = f"network is not ready: the agent of {self._here.node.name} does not answer"
            await self._wait_for(message)
            await self._warn("NetworkNotReady", message)
            await self._here.network_ready.wait()
        async with self._here.slots:
            self._attached = True
            return await self._here.runtime.add(self._attachment())

    async def _start(self) -> Any:
        async with self._here.slots:
            program = self._here.dns if cluster_dns.serves(self.pod) and self._here.dns else STAND_IN
            return await self._sandbox.start(pods.ports(self.pod), program)

    async def _retried(self, reason: str, step: Callable[[], Any]) -> Any:
        """Call `step` with backoff until it succeeds. Each failure is written to the pod's status."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            try:
                return await step()
            except (NodenetError, OSError) as error:
                log.warning("%s: %s: %s", self, reason, error)
                shown = "ContainerCreating" if reason == "FailedCreatePodSandBox" else reason
                await self._wait_for(str(error), shown)
                prefix = "Failed to create pod sandbox: " if reason == "FailedCreatePodSandBox" else ""
                await self._warn(_REASONS.get(reason, reason), f"{prefix}{error}")
            await asyncio.sleep(backoff.next())

    async def _wait_for(self, message: str, reason: str = "ContainerCreating") -> None:
        await self._set_status(pods.waiting_status(self.pod, now(), reason, message, self._restarts))

    async def _warn(self, reason: str, message: str) -> None:
        await self._here.api.warn(self.pod, reason, message, self._here.node.name)

    async def _set_status(self, status: Mapping[str, Any]) -> None:
        self._status = status
        await self._here.api.set_status(self.pod, status)

    async def _retried_quietly(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call a step of the pod's removal with backoff until it succeeds. Failures are only logged."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            try:
                await step()
                return
            except (NodenetError, OSError) as error:
                log.warning("%s: taking it down: %s", self, error)
            await asyncio.sleep(backoff.next())

    async def _take_down(self) -> None:
        await self._sandbox.stop()
        if self._attached:
            await self._here.runtime.delete(self._attachment())
            self._attached = False
        await asyncio.to_thread(self._sandbox.remove)

    def _attachment(self) -> Attachment:
        namespace, name = self.ref
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": namespace,
            "K8S_POD_NAME": name,
            "K8S_POD_INFRA_CONTAINER_ID": self._sandbox.container_id,
            "K8S_POD_UID": self.uid,
        }
        return Attachment(self._sandbox.container_id, self._sandbox.netns, arguments)
