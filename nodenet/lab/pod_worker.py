"""One pod's life on its node, from its binding to its end: sandbox, network, stand-in, status, and all of it back.

Nothing here knows policies or Services' backends: that is the agent's work, which sees the pods only through the API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from nodenet.backoff import Backoff
from nodenet.errors import NodenetError
from nodenet.lab import pods, process
from nodenet.lab.cni_runtime import Attachment, Runtime
from nodenet.lab.layout import NodePlan
from nodenet.lab.sandbox import Sandbox
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

Object = dict[str, Any]
Ref = tuple[str, str]

BACKOFF_FIRST = 1.0
BACKOFF_MOST = 10.0


class PodApi(Protocol):
    """What a kubelet asks of the API."""

    def pods(self, node: str) -> AsyncIterator[tuple[bool, Object]]:
        """For ever: every pod bound to the node, now and after each change; False: it is gone."""
        ...

    async def set_status(self, pod: Object, status: Mapping[str, Any]) -> None:
        """Merge into status. Nothing happens when that very pod (by uid) no longer exists, or when its status is
        somebody else's (pods.manual_status)."""
        ...

    async def finish_deletion(self, pod: Object) -> None:
        """The last step: take the object away. Nothing happens when it is gone already."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the pods of a node share. `network_ready` is set while the node's CNI may be called; `slots` bounds how many
    pods of the whole lab are made at one time."""

    lab: str
    node: NodePlan
    api: PodApi
    runtime: Runtime
    network_ready: asyncio.Event
    slots: asyncio.Semaphore


class PodWorker:
    """One pod, by uid."""

    def __init__(self, here: Surroundings, pod: Object) -> None:
        metadata = pod["metadata"]
        self.pod = pod
        self.uid: str = metadata["uid"]
        self.ref: Ref = (metadata["namespace"], metadata["name"])
        # The end of an earlier pod of the same name, whose namespace and cgroup this one needs.
        self.before: asyncio.Task[None] | None = None
        self._here = here
        self._ending = asyncio.Event()
        self._over = asyncio.Event()
        # What the status is to be; somebody else's is in the API while they set it (pods.manual_status).
        self._status: Mapping[str, Any] = {}
        # As a kubelet that starts again finds them: what ran before it did.
        self._restarts = pods.restarts(pod)
        self._sandbox = Sandbox(here.lab, here.node.name, self.ref, host_network=pods.host_network(pod))
        self._attached = False

    def __str__(self) -> str:
        return "/".join(self.ref)

    def update(self, pod: Object, *, ending: bool) -> bool:
        """Whether its status has just become ours again: then `tell_again` is due."""
        released = pods.manual_status(self.pod) and not pods.manual_status(pod)
        self.pod = pod
        if ending:
            self._ending.set()
        if pods.end_phase(pod):
            self._over.set()
        return released

    async def tell_again(self) -> None:
        """What is so, in place of what somebody else has written into the status."""
        await self._here.api.set_status(self.pod, {"phase": "Pending", "reason": None, "message": None, **self._status})

    @property
    def attachment(self) -> Attachment | None:
        """What the runtime has to detach, where there is a network."""
        return self._attachment() if self._attached else None

    @property
    def netns(self) -> Path | None:
        """Of the pod's own; None where it uses the node's."""
        return None if self._sandbox.host_network else self._sandbox.netns

    async def run(self) -> None:
        """Until the pod is gone. An error of one pod ends in its status and in the log, never in the kubelet."""
        if self.before is not None:
            await asyncio.wait([self.before])
        await self._until(self._live, self._over, self._ending)
        if self._over.is_set() and not self._ending.is_set():
            # A pod that is over keeps its object and its addresses there; they are free for other pods.
            await self._retried_quietly(self._take_down)
            phase = pods.end_phase(self.pod) or "Failed"
            await self._tell(pods.finished_status(self.pod, _now(), phase, self._restarts))
        await self._ending.wait()
        await self._retried_quietly(self._take_down)
        log.info("%s: removed", self)
        await self._here.api.finish_deletion(self.pod)

    async def _until(self, live: Callable[[], Coroutine[Any, Any, None]], *events: asyncio.Event) -> None:
        """`live` until one of the events, or until this task is cancelled."""
        living = asyncio.create_task(live(), name=f"live {self}")
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait([living, *waiting], return_when=asyncio.FIRST_COMPLETED)
            if living.done() and not living.cancelled() and living.exception() is not None:
                log.error("%s: unexpected", self, exc_info=living.exception())
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (living, *waiting):
                task.cancel()
            await asyncio.wait([living])

    async def _live(self) -> None:
        if pods.without_sandbox(self.pod) or (pods.finished(self.pod) and not pods.manual_status(self.pod)):
            return
        if self._restarts:
            await self._wait_for("")
        ips = await self._retried("FailedCreatePodSandBox", self._attach)
        while True:
            server = await self._retried("CrashLoopBackOff", self._start)
            node_ips = [interface.ip for interface in self._here.node.addresses]
            running = pods.running_status(self.pod, _now(), ips, node_ips, self._sandbox.container_id, self._restarts)
            await self._tell(running)
            log.info("%s: running at %s", self, ", ".join(map(str, ips)))
            status = await process.wait(server)
            self._restarts += 1
            log.warning("%s: stand-in ended with %s", self, status)
            message = f"the stand-in server ended with exit status {status}"
            await self._wait_for(message, "CrashLoopBackOff")
            await asyncio.sleep(BACKOFF_FIRST)

    async def _attach(self) -> tuple[IPAddress, ...]:
        """Sandbox and CNI ADD. A failure leaves nothing that the next attempt would stumble over."""
        await asyncio.to_thread(self._sandbox.create)
        if self._sandbox.host_network:
            return tuple(interface.ip for interface in self._here.node.addresses)
        if not self._here.network_ready.is_set():
            message = f"network is not ready: the agent of {self._here.node.name} does not answer"
            await self._wait_for(message)
            await self._here.network_ready.wait()
        async with self._here.slots:
            self._attached = True
            return await self._here.runtime.add(self._attachment())

    async def _start(self) -> Any:
        async with self._here.slots:
            return await self._sandbox.start(pods.ports(self.pod))

    async def _retried(self, reason: str, step: Callable[[], Any]) -> Any:
        """`step`, again and again with backoff; each failure is told in the pod's status."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            try:
                return await step()
            except (NodenetError, OSError) as error:
                log.warning("%s: %s: %s", self, reason, error)
                shown = "ContainerCreating" if reason == "FailedCreatePodSandBox" else reason
                await self._wait_for(str(error), shown)
            await asyncio.sleep(backoff.next())

    async def _wait_for(self, message: str, reason: str = "ContainerCreating") -> None:
        await self._tell(pods.waiting_status(self.pod, _now(), reason, message, self._restarts))

    async def _tell(self, status: Mapping[str, Any]) -> None:
        self._status = status
        await self._here.api.set_status(self.pod, status)

    async def _retried_quietly(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A step of the pod's end: one that fails is tried again until it works."""
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


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
