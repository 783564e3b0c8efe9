"""The kubelet of one node. It runs a worker for each pod that is bound to the node (pod_worker.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from nodenet.backoff import Backoff
from nodenet.errors import NodenetError
from nodenet.lab.cni_runtime import Attachment
from nodenet.lab.pod_worker import BACKOFF_FIRST, BACKOFF_MOST, Object, PodWorker, Ref, Surroundings

log = logging.getLogger(__name__)


class Kubelet:
    """`stale`: attachments of sandboxes that a reboot ended, by pod. The kubelet detaches each one (CNI DEL) before its
    pod gets a new sandbox."""

    def __init__(self, here: Surroundings, stale: Iterable[tuple[Ref, Attachment]] = ()) -> None:
        self._here = here
        self._stale = tuple(stale)
        self._workers: dict[str, PodWorker] = {}
        self._ending: dict[Ref, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            for ref, attachment in self._stale:
                self._ending[ref] = group.create_task(self._detach(attachment), name=f"stale sandbox of {ref[1]}")
            async for exists, pod in self._here.api.pods(self._here.node.name):
                self._changed(group, pod, gone=not exists)

    def attachments(self) -> list[tuple[Ref, Attachment]]:
        """The attachments of all pods that have a network."""
        found = [(worker.ref, worker.attachment) for worker in self._workers.values()]
        return [(ref, attachment) for ref, attachment in found if attachment is not None]

    def namespaces(self) -> Sequence[Path]:
        """The network namespaces of all pods that have their own."""
        return [worker.netns for worker in self._workers.values() if worker.netns is not None]

    def _changed(self, group: asyncio.TaskGroup, pod: Object, *, gone: bool) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is None:
            if gone:
                return
            worker = self._workers[uid] = PodWorker(self._here, pod)
            worker.before = self._ending.get(worker.ref)
            task = group.create_task(worker.run(), name=f"pod {pod['metadata']['name']}")
            self._ending[worker.ref] = task
            task.add_done_callback(lambda _: self._forget(worker, task))
        if worker.update(pod, ending=gone or "deletionTimestamp" in pod["metadata"]):
            group.create_task(worker.restore_status(), name=f"status of {pod['metadata']['name']}")

    def _forget(self, worker: PodWorker, task: asyncio.Task[None]) -> None:
        # A worker is cancelled when its node is rebooted. The reboot still needs it for attachments() and namespaces().
        if task.cancelled():
            return
        self._workers.pop(worker.uid, None)
        if self._ending.get(worker.ref) is task:
            del self._ending[worker.ref]

    async def _detach(self, attachment: Attachment) -> None:
        """Detach; retry until it succeeds, as a kubelet repeats StopPodSandbox."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            try:
                await self._here.runtime.delete(attachment)
                return
            except (NodenetError, OSError) as error:
                log.warning("%s: DEL of a stale sandbox: %s", attachment.container_id[:12], error)
            await asyncio.sleep(backoff.next())
