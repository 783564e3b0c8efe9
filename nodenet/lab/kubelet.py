"""The kubelet of one node: runs the pods that are bound to it, through the CNI executable, and tells their status.

One task per pod lives from its binding to its end. Nothing here knows policies or Services' backends: that is the
agent's work, which sees the pods only through the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from nodenet.backoff import Backoff
from nodenet.errors import NodenetError
from nodenet.lab import pods, process
from nodenet.lab.cni_runtime import Attachment, Runtime
from nodenet.lab.layout import LabPlan, NodePlan
from nodenet.lab.sandbox import Sandbox
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

Object = dict[str, Any]
Ref = tuple[str, str]

_BACKOFF_FIRST = 1.0
_BACKOFF_MOST = 10.0


class PodApi(Protocol):
    """What a kubelet asks of the API."""

    def pods(self, node: str) -> AsyncIterator[tuple[bool, Object]]:
        """For ever: every pod bound to the node, now and after each change; False: it is gone."""
        ...

    async def set_status(self, pod: Object, status: Mapping[str, Any]) -> None:
        """Merge into status. Nothing happens when that very pod (by uid) no longer exists."""
        ...

    async def finish_deletion(self, pod: Object) -> None:
        """The last step: take the object away. Nothing happens when it is gone already."""
        ...


class Kubelet:
    """`network_ready` says when the node's CNI may be called; `slots` bounds how many pods are made at one time."""

    def __init__(
        self,
        plan: LabPlan,
        node: NodePlan,
        api: PodApi,
        runtime: Runtime,
        network_ready: asyncio.Event,
        slots: asyncio.Semaphore,
    ) -> None:
        self.node = node
        self.api = api
        self.runtime = runtime
        self.network_ready = network_ready
        self.slots = slots
        self.lab = plan.name
        self._workers: dict[str, PodWorker] = {}
        self._ending: dict[Ref, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            async for exists, pod in self.api.pods(self.node.name):
                self._changed(group, pod, gone=not exists)

    def _changed(self, group: asyncio.TaskGroup, pod: Object, *, gone: bool) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is None:
            if gone:
                return
            worker = self._workers[uid] = PodWorker(self, pod)
            worker.before = self._ending.get(worker.ref)
            task = group.create_task(worker.run(), name=f"pod {pod['metadata']['name']}")
            self._ending[worker.ref] = task
            task.add_done_callback(lambda _: self._forget(worker, task))
        worker.update(pod, ending=gone or "deletionTimestamp" in pod["metadata"])

    def _forget(self, worker: PodWorker, task: asyncio.Task[None]) -> None:
        self._workers.pop(worker.uid, None)
        if self._ending.get(worker.ref) is task:
            del self._ending[worker.ref]


class PodWorker:
    """One pod's life: sandbox, network, stand-in, status; and all of it back again."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        metadata = pod["metadata"]
        self.pod = pod
        self.uid: str = metadata["uid"]
        self.ref: Ref = (metadata["namespace"], metadata["name"])
        # The end of an earlier pod of the same name, whose namespace and cgroup this one needs.
        self.before: asyncio.Task[None] | None = None
        self._kubelet = kubelet
        self._ending = asyncio.Event()
        self._sandbox = Sandbox(kubelet.lab, kubelet.node.name, self.ref, host_network=pods.host_network(pod))
        self._attached = False

    def __str__(self) -> str:
        return "/".join(self.ref)

    def update(self, pod: Object, *, ending: bool) -> None:
        self.pod = pod
        if ending:
            self._ending.set()

    async def run(self) -> None:
        """Until the pod is gone. An error of one pod ends in its status and in the log, never in the kubelet."""
        if self.before is not None:
            await asyncio.wait([self.before])
        living = asyncio.create_task(self._live(), name=f"live {self}")
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([living, ending], return_when=asyncio.FIRST_COMPLETED)
            if living.done() and not living.cancelled() and living.exception() is not None:
                log.error("%s: unexpected", self, exc_info=living.exception())
            await ending
        finally:
            living.cancel()
            ending.cancel()
            await asyncio.wait([living])
        await self._end()

    async def _live(self) -> None:
        ips = await self._retried("FailedCreatePodSandBox", self._attach)
        restarts = 0
        while True:
            server = await self._retried("CrashLoopBackOff", self._start)
            node_ips = [interface.ip for interface in self._kubelet.node.addresses]
            await self._kubelet.api.set_status(
                self.pod, pods.running_status(self.pod, _now(), ips, node_ips, self._sandbox.container_id, restarts)
            )
            log.info("%s: running at %s", self, ", ".join(map(str, ips)))
            status = await process.wait(server)
            restarts += 1
            log.warning("%s: stand-in ended with %s", self, status)
            message = f"the stand-in server ended with exit status {status}"
            waiting = pods.waiting_status(self.pod, _now(), "CrashLoopBackOff", message, restarts)
            await self._kubelet.api.set_status(self.pod, waiting)
            await asyncio.sleep(_BACKOFF_FIRST)

    async def _attach(self) -> tuple[IPAddress, ...]:
        """Sandbox and CNI ADD. A failure leaves nothing that the next attempt would stumble over."""
        await asyncio.to_thread(self._sandbox.create)
        if self._sandbox.host_network:
            return tuple(interface.ip for interface in self._kubelet.node.addresses)
        if not self._kubelet.network_ready.is_set():
            message = f"network is not ready: the agent of {self._kubelet.node.name} does not answer"
            await self._wait_for(message)
            await self._kubelet.network_ready.wait()
        async with self._kubelet.slots:
            self._attached = True
            return await self._kubelet.runtime.add(self._attachment())

    async def _start(self) -> Any:
        async with self._kubelet.slots:
            return await self._sandbox.start(pods.ports(self.pod))

    async def _retried(self, reason: str, step: Callable[[], Any]) -> Any:
        """`step`, again and again with backoff; each failure is told in the pod's status."""
        backoff = Backoff(_BACKOFF_FIRST, _BACKOFF_MOST)
        while True:
            try:
                return await step()
            except (NodenetError, OSError) as error:
                log.warning("%s: %s: %s", self, reason, error)
                shown = "ContainerCreating" if reason == "FailedCreatePodSandBox" else reason
                await self._wait_for(str(error), shown)
            await asyncio.sleep(backoff.next())

    async def _wait_for(self, message: str, reason: str = "ContainerCreating") -> None:
        await self._kubelet.api.set_status(self.pod, pods.waiting_status(self.pod, _now(), reason, message))

    async def _end(self) -> None:
        """Stop, detach, remove, and only then let the object go. A step that fails is tried again until it works."""
        backoff = Backoff(_BACKOFF_FIRST, _BACKOFF_MOST)
        while True:
            try:
                await self._take_down()
                break
            except (NodenetError, OSError) as error:
                log.warning("%s: taking it down: %s", self, error)
            await asyncio.sleep(backoff.next())
        log.info("%s: removed", self)
        await self._kubelet.api.finish_deletion(self.pod)

    async def _take_down(self) -> None:
        await self._sandbox.stop()
        if self._attached:
            await self._kubelet.runtime.delete(self._attachment())
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


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
