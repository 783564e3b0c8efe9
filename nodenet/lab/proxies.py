"""kube-proxy's stand-in on one node of a lab: starts the process nodenet.kubeproxy, restarts it, removes its rules.

`lab up --proxy MODE` and `lab proxy MODE` choose the mode. "ebpf": no such process, the agent serves Services itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nodenet.backoff import Backoff
from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import names, process
from nodenet.lab.layout import LabPlan, NodePlan
from nodenet.link import kube_proxy, netns

log = logging.getLogger(__name__)

EBPF = "ebpf"
MODES = (EBPF, "iptables", "nftables", "ipvs")
_PROGRAMS = {
    "iptables": ("iptables-restore", "ip6tables-restore"),
    "nftables": ("nft",),
    "ipvs": ("ipvsadm", "ipset", "ip", "iptables-restore", "ip6tables-restore"),
}
_BRIDGE = "/proc/sys/net/bridge/bridge-nf-call-{}"
_IPVS = Path("/proc/net/ip_vs")
_STATE = "kube-proxy.json"
_LOG = "kube-proxy.log"
_BACKOFF_FIRST, _BACKOFF_MOST = 1.0, 30.0
_GRACE = 5.0
_POLL = 0.05
# Seconds until the first rules must be written.
_FIRST = 20.0


def check(mode: str) -> None:
    """Raises BadInputError for an unknown mode, CannotRunError if this machine cannot run it."""
    if mode not in MODES:
        raise BadInputError(f"--proxy: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == EBPF:
        return
    missing = [program for program in _PROGRAMS[mode] if shutil.which(program) is None]
    if missing:
        raise CannotRunError(f"--proxy {mode}: not installed: {', '.join(missing)}")
    if not Path(_BRIDGE.format("iptables")).exists():
        _load("br_netfilter")
    if not Path(_BRIDGE.format("iptables")).exists():
        raise CannotRunError(
            f"--proxy {mode}: this kernel has no br_netfilter: answers between pods of one node would not be translated"
        )
    if mode == "ipvs" and not _IPVS.exists():
        _load("ip_vs")
    if mode == "ipvs" and not _IPVS.exists():
        raise CannotRunError(
            "--proxy ipvs: this kernel has no IPVS: there is no /proc/net/ip_vs, and the module ip_vs cannot be loaded",
            "iptables and nftables work here; nodenet bench --vm KERNEL --modes ipvs runs IPVS in a virtual machine",
        )


def _load(module: str) -> None:
    if shutil.which("modprobe") is not None:
        subprocess.run(["modprobe", module], capture_output=True, check=False, timeout=30)


class Proxy:
    """The supervisor of one node's stand-in. `mode` is the one that is wanted."""

    def __init__(self, plan: LabPlan, node: NodePlan, place: process.Place) -> None:
        self.mode = EBPF
        self.restarts = 0
        self._node = node
        self._plan = plan
        self._place = place
        self._folder = names.node_dir(plan.name, node.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    def describe(self) -> dict[str, Any]:
        """Its state, for `lab status`."""
        running = self._process is not None and self._process.poll() is None
        row = {"node": self._node.name, "mode": self.mode, "restarts": self.restarts}
        return row | {"pid": self._process.pid if running and self._process is not None else None, **self._written()}

    async def start(self, mode: str) -> None:
        """Start the process, and wait until it has written its rules. Raises CannotRunError if it fails to."""
        await self.stop()
        if mode == EBPF:
            return
        self.mode = mode
        await asyncio.to_thread(netns.call, self._place.netns, _pass_bridge_frames, self._plan.family.versions)
        self._task = asyncio.create_task(self._keep(), name=f"kube-proxy {self._node.name}")
        deadline = time.monotonic() + _FIRST
        while not self._written():
            if self.restarts or time.monotonic() > deadline:
                raise CannotRunError(f"{self._node.name}: kube-proxy's stand-in wrote no rules: {self._last_line()}")
            await asyncio.sleep(_POLL)

    async def stop(self) -> None:
        """End the process and remove its rules. Raises CannotRunError, OSError and netlink errors."""
        await self.crash()
        if self.mode != EBPF:
            await asyncio.to_thread(netns.call, self._place.netns, _remove_rules)
            self.mode = EBPF

    async def crash(self) -> None:
        """End the process and leave its rules, as a power failure does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if self._process is not None:
            await process.stop(self._process, _GRACE)
        self.restarts = 0
        self._state.unlink(missing_ok=True)

    @property
    def _state(self) -> Path:
        return self._folder / _STATE

    async def _keep(self) -> None:
        """Keep the process running until cancelled."""
        backoff = Backoff(_BACKOFF_FIRST, _BACKOFF_MOST)
        while True:
            with (self._folder / _LOG).open("ab") as output:
                self._process = await asyncio.to_thread(
                    process.spawn, self._place, self._command(), stdout=output, stderr=output
                )
            status = await process.wait(self._process)
            self._state.unlink(missing_ok=True)
            self.restarts += 1
            seconds = backoff.next()
            log.warning("%s: kube-proxy's stand-in ended with %s: %s", self._node.name, status, self._last_line())
            await asyncio.sleep(seconds)

    def _command(self) -> list[str]:
        pods = {network.version: str(network) for network in self._node.pod_cidrs}
        networks = [
            {"version": services.version, "podCIDR": pods[services.version], "serviceCIDR": str(services)}
            for services in self._plan.service_cidrs
        ]
        given = {"mode": self.mode, "node": self._node.name, "networks": networks}
        given |= {"kubeconfig": str(self._folder / "kubeconfig"), "state": str(self._state)}
        return [sys.executable, "-m", "nodenet.kubeproxy.main", json.dumps(given)]

    def _written(self) -> dict[str, Any]:
        """What the process has written; empty before its first rules."""
        try:
            data: dict[str, Any] = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return {}
        return {"servicePorts": data["servicePorts"], "writes": data["writes"]}

    def _last_line(self) -> str:
        text = (self._folder / _LOG).read_text(errors="replace") if (self._folder / _LOG).exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("nodenet: ") if lines else "its log is empty"


def _pass_bridge_frames(versions: tuple[int, ...]) -> None:
    """Call it in the node's namespace. Frames between its pods pass netfilter, as kube-proxy needs it."""
    for version in versions:
        Path(_BRIDGE.format("iptables" if version == 4 else "ip6tables")).write_text("1")


def _remove_rules() -> None:
    """Call it in the node's namespace. All virtual servers there are the stand-in's, those of NodePorts too."""
    if _IPVS.exists() and shutil.which("ipvsadm") is not None:
        subprocess.run(["ipvsadm", "-C"], capture_output=True, check=True, timeout=30)
    for found in kube_proxy.find():
        kube_proxy.remove(found)
