"""The daemon process of a lab: API endpoint, controllers, and for each node a kubelet and a supervisor of its agent.

`lab up` starts it detached, in the lab's control cgroup: `python -m nodenet.lab.daemon LAB REPORT_FD`. During start-up
it writes one JSON object per line to REPORT_FD: {"progress": text}, then {"ready": true} or {"error", "hint", "code"}.
It removes nothing when it ends. `lab down` does that, because it must also work after a crash.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from nodenet.errors import NodenetError
from nodenet.lab import cluster_dns, control, fabric, files, layout, names, proxies, settings
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.lab.controllers.kubernetes_service import Endpoint
from nodenet.lab.controllers.run import run as run_controllers
from nodenet.lab.files import LabFiles, LabState
from nodenet.lab.gate import Gate, networks_of
from nodenet.lab.guard import LabAccess, new_tokens
from nodenet.lab.layout import LabPlan
from nodenet.lab.troubles import Troubles
from nodenet.lab.virtual_node import VirtualNode
from nodenet.link import netns

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

# How many pods the whole lab creates at the same time. More than the processors can handle only makes each one slower.
_SLOTS = max(4, 2 * (os.cpu_count() or 1))


class Lab:
    """A running lab. None of its tasks is expected to end; if one fails, its TaskGroup ends the lab."""

    def __init__(self, state: LabState, report: Report) -> None:
        self.plan: LabPlan = state.plan
        self.files = LabFiles(state.plan.name)
        self._nodes: dict[str, VirtualNode] = {}
        self._state = state
        self._report = report
        self._started = time.time()
        self._tokens = new_tokens(node.name for node in state.plan.nodes)
        services = [str(network) for network in state.plan.service_cidrs]
        self._gate = Gate(networks_of(state.plan))
        self._api = ApiServer(services, access=LabAccess(self._tokens.users()), refuse=self._gate.refuse)
        self._troubles = Troubles(self._api, self._gate, self._nodes)
        self._slots = asyncio.Semaphore(_SLOTS)
        self._switching = asyncio.Lock()

    async def run(self) -> None:
        """Build everything, report "ready" when all agents are ready, and serve until cancelled."""
        plan = self.plan
        await asyncio.to_thread(fabric.build, plan)
        built = f"{len(plan.nodes)} made, {plan.family.value}: namespaces, fabric, cgroups, bpffs"
        self._report({"progress": f"nodes: {built}"})
        listening = await asyncio.to_thread(netns.call, names.fabric_netns(plan.name), _listen, plan)
        async with (
            serve(self._api, addresses=[("127.0.0.1", 0)]) as server,
            self._gate.serve(server.accept, listening),
            control.serve(self.files.socket, self.describe, {**self._troubles.acts(), "proxy": self.proxy}),
            asyncio.TaskGroup() as group,
        ):
            port = server.ports[0]
            files.write_all(self._state, port, self._tokens)
            self._state = replace(self._state, pid=os.getpid(), port=port)
            files.write_state(self._state)
            self._report({"progress": f"API endpoint: http://127.0.0.1:{port}"})
            endpoint = Endpoint([str(address) for address in plan.api_addresses], layout.API_PORT)
            group.create_task(run_controllers(self._api, endpoint), name="controllers")
            if self._state.dns.pods:
                for obj in cluster_dns.objects(plan):
                    await self._api.client.create(obj)
            dns = cluster_dns.program(self.files.dns_kubeconfig, self._state.dns.upstream)
            for node in plan.nodes:
                made = self._nodes[node.name] = VirtualNode(plan, node, self._api.client, self._slots, dns)
                group.create_task(made.run(), name=node.name)
            await self._agents_ready()
            await self._start_proxies()
            self._report({"ready": True})

    def describe(self) -> dict[str, Any]:
        """GET /status of the control socket."""
        return {
            "name": self.plan.name,
            "pid": os.getpid(),
            "startedAt": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "agents": [node.agent.describe() for node in self._nodes.values()],
            "troubles": self._troubles.describe(),
            "proxy": self._state.proxy,
            "proxies": [node.proxy.describe() for node in self._nodes.values() if node.proxy.mode != proxies.EBPF],
        }

    async def proxy(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Takes {"mode"}, one of proxies.MODES: what serves Services on all nodes from now on. Returns what runs."""
        mode = str(request.get("mode", ""))
        await asyncio.to_thread(proxies.check, mode)
        if mode != proxies.EBPF:
            settings.check_proxy(self._state.agents, mode)
        async with self._switching:
            self._state = replace(self._state, proxy=mode)
            files.write_state(self._state)
            for node in self.plan.nodes:
                files.write_agent_config(self._state, node)
            await asyncio.gather(*(node.switch(mode) for node in self._nodes.values()))
        return [node.proxy.describe() for node in self._nodes.values()]

    async def _start_proxies(self) -> None:
        mode = self._state.proxy
        if mode != proxies.EBPF:
            await asyncio.gather(*(node.proxy.start(mode) for node in self._nodes.values()))
            self._report({"progress": f"Services: kube-proxy's rules, {mode}"})

    async def _agents_ready(self) -> None:
        """Wait until every agent has been ready. Raises CannotRunError with the last log line of an agent that ends
        before that."""
        await asyncio.gather(*(node.agent.first_ready() for node in self._nodes.values()))
        self._report({"progress": f"agents: {len(self._nodes)} ready"})


def _listen(plan: LabPlan) -> list[socket.socket]:
    """Bind the API's sockets. Call it inside the fabric's namespace: a socket stays in the namespace where it was
    created."""
    found = []
    for address in plan.api_addresses:
        sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), layout.API_PORT))
        sock.setblocking(False)
        found.append(sock)
    return found


def _reporter(fd: int) -> Report:
    """Returns a function that writes reports to `lab up`. If `lab up` has ended, the lab continues without reports."""

    def report(line: dict[str, Any]) -> None:
        log.info("%s", line)
        try:
            os.write(fd, json.dumps(line).encode() + b"\n")
        except OSError as error:
            log.info("`lab up` no longer reads the reports: %s", error)

    return report


async def _main(state: LabState, report: Report) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await Lab(state, report).run()


def main(argv: list[str]) -> int:
    """Run a lab until SIGTERM. Errors during start-up are reported to `lab up`, which then removes the lab."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    report = _reporter(int(argv[1]))
    try:
        asyncio.run(_main(files.read_state(argv[0]), report))
    except asyncio.CancelledError:
        log.info("terminated by a signal")
        return 0
    except (NodenetError, OSError, BaseExceptionGroup) as group:
        error = _first(group)
        log.error("cannot continue", exc_info=group)
        code = getattr(error, "exit_code", 3)
        report({"error": str(error), "hint": getattr(error, "hint", ""), "code": code})
        return int(code)
    return 0


def _first(error: BaseException) -> BaseException:
    """The first error of a TaskGroup, without the groups around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
