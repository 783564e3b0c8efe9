"""Decides who serves the hostPorts of this node's pods: the agent, or a plugin that the runtime calls after ours. Never
both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nodenet.cni.conflist import port_mapper
from nodenet.config import Config

log = logging.getLogger(__name__)

AGENT, NONE = "agent", "none"


class HostPortOwner:
    """`publish` is called with whether the agent serves them, at each change."""

    def __init__(self, config: Config, publish: Callable[[bool], None]) -> None:
        self.problems: list[str] = []
        # The agent, a plugin and its file, or none.
        self.served_by = ""
        self._config = config
        self._publish = publish

    async def refresh(self) -> None:
        """Read the conflist that the runtime uses."""
        try:
            plugin = await asyncio.to_thread(self._plugin)
        except OSError as error:
            # What was known before stays.
            self.problems = [f"hostPorts: the network configurations could not be read: {error}"]
            return
        self.problems = []
        served_by = plugin or (AGENT if self._config.services else NONE)
        if served_by == self.served_by:
            return
        self.served_by = served_by
        if plugin:
            log.info("hostPorts are left to %s", plugin)
        self._publish(not plugin)

    def _plugin(self) -> str:
        config = self._config
        if config.host_ports:
            # The conflist may not be written yet.
            return "portmap (host_ports)"
        return port_mapper(config.cni_conf_dir) if config.cni_conf_dir is not None else ""

    async def keep(self) -> None:
        """Read it again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._config.resync_seconds)
            await self.refresh()
