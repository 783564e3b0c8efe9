"""Starts and stops the agent: lock, signals, servers."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from nodenet.agent.core import Agent
from nodenet.agent.datapath import Datapath
from nodenet.agent.lock import agent_lock
from nodenet.agent.memory import collect_rarely, keep_trimmed, limit_arenas
from nodenet.agent.peers import NodePeers
from nodenet.agent.provider import AgentProvider
from nodenet.config import Config
from nodenet.errors import NodenetError
from nodenet.metrics.proxy import metrics_port_routes, mode_routes, proxy_routes
from nodenet.metrics.server import HttpServer, health_routes, metrics_routes
from nodenet.rpc.server import Server

log = logging.getLogger(__name__)

# Seconds after which a thread must release the interpreter if another one waits. A hundred pods that start at the same
# time wait for each other about ten times each; with Python's default of 5 ms that would take a second.
SWITCH_SECONDS = 0.0005


def run(config: Config) -> None:
    """Run until SIGTERM or SIGINT. Raises NodenetError if the agent cannot run here, also if another one runs."""
    sys.setswitchinterval(SWITCH_SECONDS)
    limit_arenas()
    collect_rarely()
    try:
        with agent_lock(config.run_dir):
            asyncio.run(_run(config))
    except* NodenetError as group:
        # The first error is the cause. The others come from tasks that ended because of it.
        raise _first(group) from group


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    datapath = await asyncio.to_thread(Datapath, config)
    try:
        agent = Agent(config, datapath)
        server = Server(
            agent.parts.events.feed, AgentProvider(agent.parts), agent.parts.info, NodePeers(config, agent.parts.engine)
        )
        listeners = {
            config.proxy_health_address: HttpServer(
                "proxy_health_address", proxy_routes(agent.service_health, agent.metrics.proxy.answered)
            ),
            config.proxy_metrics_address: HttpServer(
                "proxy_metrics_address", metrics_port_routes(agent.metrics.proxy_text)
            ),
            config.health_address: HttpServer("health_address", health_routes(agent.source)),
            # Last, so that it serves both if the addresses are equal. It always has the probes too.
            config.metrics_address: HttpServer(
                "metrics_address", [*metrics_routes(agent.metrics.text), *health_routes(agent.source), *mode_routes()]
            ),
        }
        await server.start(config.agent_socket, config.hubble_address)
        try:
            for address, listener in listeners.items():
                if address:
                    await listener.start(address)
            await _until(stop, agent)
        finally:
            for listener in listeners.values():
                await listener.stop()
            await server.stop()
    finally:
        datapath.close()


async def _until(stop: asyncio.Event, agent: Agent) -> None:
    """Run the agent until it fails or `stop` is set."""
    work = asyncio.create_task(agent.run(), name="agent")
    asked = asyncio.create_task(stop.wait(), name="stop")
    trimming = asyncio.create_task(keep_trimmed(), name="trim")
    await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    trimming.cancel()
    if work.done():
        work.result()
    else:
        # Close the CNI server first, while the reconcile loop still runs: pending ADDs and DELs need it to succeed.
        await agent.cni.close()
    log.info("stopping: forwarding, Services and policy go on in the kernel")
    work.cancel()
    await asyncio.wait((work,))


def _first(group: BaseExceptionGroup[NodenetError]) -> NodenetError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
