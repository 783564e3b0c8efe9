"""One virtual node: runs its agent and its kubelet, updates its Node object, and can reboot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from nodenet.lab import groups, names, nodes, process, reboot
from nodenet.lab.agents import Agent
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.cni_runtime import Attachment, Runtime
from nodenet.lab.files import LabFiles
from nodenet.lab.kubelet import Kubelet
from nodenet.lab.layout import LabPlan, NodePlan
from nodenet.lab.pod_api import ClientPodApi
from nodenet.lab.pod_worker import Ref, Surroundings
from nodenet.lab.proxies import EBPF, Proxy

log = logging.getLogger(__name__)


class VirtualNode:
    """Before `run`, the caller creates the kernel objects (fabric.make_node) and the files (files.write_all).

    `slots` limits how many pods of the whole lab are created at the same time. `dns`: the program of DNS pods.
    """

    def __init__(
        self, plan: LabPlan, node: NodePlan, client: LocalClient, slots: asyncio.Semaphore, dns: Sequence[str]
    ) -> None:
        self.plan = node
        self._lab = plan
        self._client = client
        files = LabFiles(plan.name)
        folder = files.node(node.name)
        place = process.Place(
            names.netns_path(names.node_netns(plan.name, node.name)),
            groups.node_system(plan.name, node.name),
            reboot.boot_id_file(folder),
        )
        self._changed = asyncio.Event()
        self.agent = Agent(node.name, place, folder, self._changed.set)
        self.proxy = Proxy(plan, node, place)
        self._network_ready = asyncio.Event()
        self._runtime = Runtime(files.conflist(node.name), files.plugins, place, files.results(node.name))
        self._here = Surroundings(plan.name, node, ClientPodApi(client), self._runtime, self._network_ready, slots, dns)
        self._rebooting = asyncio.Lock()

    async def run(self) -> None:
        """Register the Node, then run agent and kubelet and update the Node's readiness, until cancelled."""
        boot_id = process.BOOT_ID.read_text().strip()
        await self._client.create(nodes.node_object(self._lab, self.plan, _now(), boot_id))
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.agent.run(), name=f"agent {self.plan.name}")
            group.create_task(self._update_readiness(), name=f"node {self.plan.name}")
            self._start_kubelet()

    async def reboot(self, *, forget: bool) -> str:
        """Simulate a power failure and a boot. Returns the new boot id. `forget`: the runtime loses its records, so it
        never detaches the old sandboxes. CRI-O wipes its records at boot; containerd keeps them."""
        async with self._rebooting:
            log.warning("%s: reboot", self.plan.name)
            await self.agent.crash()
            await self.proxy.crash()
            kubelet, task = self._kubelet, self._kubelet_task
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            stale = kubelet.attachments()
            await asyncio.to_thread(reboot.power_off, self._lab, self.plan, kubelet.namespaces())
            boot_id = await asyncio.to_thread(reboot.power_on, self._lab, self.plan)
            status = {"status": {"nodeInfo": {"bootID": boot_id}}}
            await self._client.patch("Node", self.plan.name, status, subresource="status")
            if forget:
                self._runtime.forget()
            self._start_kubelet([] if forget else stale)
            await self.agent.act("start")
            if self.proxy.mode != EBPF:
                await self.proxy.start(self.proxy.mode)
            return boot_id

    async def switch(self, mode: str) -> None:
        """Serve Services in another mode. The caller has written the agent's configuration for it. For a moment
        nothing serves them. Raises CannotRunError."""
        async with self._rebooting:
            before = self.proxy.mode
            await self.proxy.stop()
            if EBPF in (before, mode) and before != mode:
                await self.agent.reconfigure()
            await self.proxy.start(mode)

    def _start_kubelet(self, stale: Iterable[tuple[Ref, Attachment]] = ()) -> None:
        self._kubelet = Kubelet(self._here, stale)
        self._kubelet_task = self._group.create_task(self._kubelet.run(), name=f"kubelet {self.plan.name}")

    async def _update_readiness(self) -> None:
        """Set the Node's Ready condition and `network_ready` to the state of the agent, until cancelled."""
        reported: bool | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            ready = self.agent.ready.is_set()
            (self._network_ready.set if ready else self._network_ready.clear)()
            if ready is not reported:
                status = {"status": {"conditions": [nodes.ready_condition(ready, _now())]}}
                await self._client.patch("Node", self.plan.name, status, subresource="status")
                reported = ready


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
