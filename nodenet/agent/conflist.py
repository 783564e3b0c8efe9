"""Writes the conflist when the agent is ready, and again if it is removed or changed. It stays when the agent ends."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from nodenet.cni.conflist import CONFLIST, Options, earlier, render_conflist, write_conflist
from nodenet.config import Config
from nodenet.errors import NodenetError

log = logging.getLogger(__name__)


class ConflistKeeper:
    """Does nothing without `cni_conf_dir`."""

    def __init__(self, config: Config) -> None:
        self.problems: list[str] = []
        self._folder = config.cni_conf_dir
        self._seconds = config.resync_seconds
        # The MTU stays 0 in the file: the plugin asks the agent, so a change of the uplink changes no file.
        options = Options(agent_socket=str(config.run_dir / "cni.sock"), host_ports=config.host_ports)
        self._text = render_conflist(options)

    async def keep(self, ready: asyncio.Event) -> None:
        """Keep the file in place until cancelled, from the time when `ready` is set."""
        await ready.wait()
        while self._folder is not None:
            await asyncio.to_thread(self.check, self._folder)
            await asyncio.sleep(self._seconds)

    def check(self, folder: Path) -> None:
        """Write the file if it is not as it must be."""
        try:
            if write_conflist(folder, self._text):
                log.info("%s written", folder / CONFLIST)
            self.problems = [
                f"{path}: container runtimes use this network instead of ours: remove it" for path in earlier(folder)
            ]
        except (NodenetError, OSError) as error:
            problem = f"conflist: {error}"
            if problem not in self.problems:
                log.error("%s", problem)
            self.problems = [problem]
