"""Calls CNI plugins exactly as a container runtime does: libcni's handling of a conflist (CNI SPEC 1.1.0, section 4).

Each plugin gets its own part of the list with `name`, `cniVersion` and the previous plugin's result. ADD runs the
plugins in order, DEL in reverse order with the cached result of ADD. The runtime stores the results, not the plugin.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from nodenet.errors import NodenetError
from nodenet.lab import process
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

IFNAME = "eth0"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds. The kubelet's runtime request timeout is two minutes, but a lab's plugin answers in milliseconds.
_TIMEOUT = 30.0


class CniError(NodenetError):
    """A plugin's error result. `code`: 1-99 are defined by the CNI specification, 100 and above by the plugin."""

    def __init__(self, plugin: str, verb: str, code: int, message: str, details: str = "") -> None:
        shown = f"{message}: {details}" if details else message
        super().__init__(f"CNI {verb} by plugin {plugin} failed (code {code}): {shown}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Attachment:
    """One network interface of a sandbox. `args` become CNI_ARGS."""

    container_id: str
    netns: Path
    args: Mapping[str, str]


class Runtime:
    """The runtime of one node: a conflist, the folder of its plugins, where they run, and where results are stored."""

    def __init__(self, conflist: Path, plugins: Path, place: process.Place, cache: Path) -> None:
        self._conflist: dict[str, Any] = json.loads(conflist.read_text())
        self._plugins = plugins
        self._place = place
        self._cache = cache

    async def add(self, attachment: Attachment) -> tuple[IPAddress, ...]:
        """Attach the pod and return its addresses. On failure, undo everything with DEL and raise CniError.

        If that DEL fails too, the caller's DEL at the end of the pod cleans up.
        """
        result: dict[str, Any] | None = None
        try:
            for plugin in self._conflist["plugins"]:
                result = await self._call("ADD", plugin, attachment, result)
        except CniError:
            try:
                await self.delete(attachment)
            except CniError as error:
                log.warning("after a failed ADD: %s", error)
            raise
        self._cache.mkdir(parents=True, exist_ok=True)
        self._cached(attachment).write_text(json.dumps(result))
        return addresses(result or {})

    async def delete(self, attachment: Attachment) -> None:
        """Detach the pod. Idempotent. Raises CniError if a plugin fails."""
        cached = self._cached(attachment)
        result = json.loads(cached.read_text()) if cached.exists() else None
        for plugin in reversed(self._conflist["plugins"]):
            await self._call("DEL", plugin, attachment, result)
        cached.unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete all results, like a runtime that clears its state at boot."""
        for path in self._cache.glob("*.json"):
            path.unlink()

    async def _call(
        self, verb: str, plugin: Mapping[str, Any], attachment: Attachment, previous: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        kind = plugin["type"]
        executable = self._plugins / kind
        if not executable.exists():
            raise CniError(kind, verb, 4, f"no such executable: {executable}")
        config = plugin_config(self._conflist, plugin, previous)
        env = environment(verb, attachment, self._plugins)
        try:
            status, out, err = await process.run(
                self._place, [str(executable)], env=env, stdin=json.dumps(config).encode(), limit=_TIMEOUT
            )
        except TimeoutError as error:
            raise CniError(kind, verb, 11, str(error)) from error
        return read_result(kind, verb, status, out, err)

    def _cached(self, attachment: Attachment) -> Path:
        return self._cache / f"{self._conflist['name']}-{attachment.container_id}-{IFNAME}.json"


def environment(verb: str, attachment: Attachment, plugins: Path) -> dict[str, str]:
    """The complete environment of the plugin (SPEC section 2)."""
    return {
        "PATH": _PATH,
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": str(attachment.netns),
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": str(plugins),
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args.items()),
    }


def plugin_config(
    conflist: Mapping[str, Any], plugin: Mapping[str, Any], previous: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The configuration of one plugin, derived from the list (SPEC section 4)."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if plugin.get("capabilities"):
        config["runtimeConfig"] = {}
    if previous is not None:
        config["prevResult"] = previous
    return config


def read_result(plugin: str, verb: str, status: int, out: bytes, err: bytes) -> dict[str, Any] | None:
    """The plugin's result. Raises CniError for an error result and for output that is not a valid result."""
    try:
        answer = json.loads(out) if out.strip() else None
    except ValueError as error:
        raise CniError(plugin, verb, 6, f"its answer is not JSON: {out[:200]!r}") from error
    if status == 0:
        return answer if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or "code" not in answer:
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise CniError(plugin, verb, 100, f"exit status {status} without an error result", last)
    raise CniError(plugin, verb, int(answer["code"]), str(answer.get("msg", "")), str(answer.get("details") or ""))


def addresses(result: Mapping[str, Any]) -> tuple[IPAddress, ...]:
    """The addresses of a result, in the plugin's order: the first of each family is the pod's."""
    return tuple(ip_interface(entry["address"]).ip for entry in result.get("ips", ()))
