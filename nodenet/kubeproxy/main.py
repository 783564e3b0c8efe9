"""A process that keeps kube-proxy's rules on one node: `python -m nodenet.kubeproxy.main SETTINGS`, in its namespace.

It lists and watches Services, EndpointSlices and Nodes, and writes every change. SETTINGS is a JSON object, see
`Settings`. After each write it replaces the file `state`: the lab waits for that. Rules of an earlier process are
removed at the start. When the process ends its rules stay, as kube-proxy's do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet import kinds
from nodenet.compile import ZONE_LABEL
from nodenet.compile.backends import Here
from nodenet.errors import BadInputError, NodenetError
from nodenet.kinds import ApiKind
from nodenet.kube.client import KubeClient
from nodenet.kube.config import load as load_access
from nodenet.kubeproxy import programs, table
from nodenet.kubeproxy.model import Network, Services
from nodenet.link import kube_proxy, smallfile
from nodenet.model import Node, ObjectRef
from nodenet.store import Snapshot, Store

log = logging.getLogger(__name__)

KINDS = (kinds.SERVICE, kinds.ENDPOINT_SLICE, kinds.NODE)
# Seconds between two writes, so that many changes at once are written together.
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """`networks`: for each IP family of the cluster the network of this node's pods and that of the ClusterIPs."""

    mode: str
    node: str
    kubeconfig: Path
    state: Path
    networks: tuple[Network, ...]


def settings(text: str) -> Settings:
    """Raises BadInputError."""
    try:
        data = json.loads(text)
        networks = tuple(Network(n["version"], n["podCIDR"], n["serviceCIDR"]) for n in data["networks"])
        return Settings(data["mode"], data["node"], Path(data["kubeconfig"]), Path(data["state"]), networks)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"settings: expected mode, node, kubeconfig, state and networks: {error!r}") from error


def network_of(base: Network, mode: str, node: Node) -> Network:
    """With this node's address. nftables serves NodePorts on it, the other modes on all addresses of the node."""
    own = next((str(address) for address in node.addresses if address.version == base.version), "")
    ports = (own,) if mode == "nftables" and own else ()
    return Network(base.version, base.pod_cidr, base.service_cidr, own, ports)


class Proxy:
    """Keeps the rules up to date until it is cancelled."""

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._store = Store(KINDS)
        self._client = KubeClient(load_access(given.kubeconfig), KINDS)
        self._changed = asyncio.Event()
        self._writers = {network.version: programs.writer(given.mode) for network in given.networks}
        self._held: dict[int, tuple[Network, Services]] = {}
        self._writes = 0

    async def run(self) -> None:
        """Raises NodenetError if the rules cannot be written."""
        await asyncio.to_thread(remove_leftovers)
        async with self._client, asyncio.TaskGroup() as tasks:
            for kind in KINDS:
                tasks.create_task(self._watch(kind), name=f"watch {kind}")
            tasks.create_task(self._keep(), name="write")

    async def _watch(self, kind: ApiKind) -> None:
        async for event in self._client.watch(kind):
            if self._store.feed(event):
                self._changed.set()

    async def _keep(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._store.synced:
                await asyncio.to_thread(self._write, self._store.snapshot())
            await asyncio.sleep(_PAUSE)

    def _write(self, snapshot: Snapshot) -> None:
        """Write what differs. Blocks."""
        given = self._given
        node = snapshot.nodes.get(ObjectRef("", given.node)) or Node(given.node)
        here = Here(given.node, node.labels.get(ZONE_LABEL, ""))
        for base in given.networks:
            wanted = (
                network_of(base, given.mode, node),
                table.services(snapshot.services, snapshot.slices.values(), here, base.version),
            )
            if self._held.get(base.version) != wanted:
                started = time.monotonic()
                self._writers[base.version].write(*wanted)
                self._held[base.version] = wanted
                self._writes += 1
                seconds = time.monotonic() - started
                log.info("IPv%d: %d Service ports written in %.3f s", base.version, len(wanted[1]), seconds)
        self._report(snapshot.revision)

    def _report(self, revision: int) -> None:
        ports = sum(len(services) for _, services in self._held.values())
        data: dict[str, Any] = {"mode": self._given.mode, "servicePorts": ports, "writes": self._writes}
        new = self._given.state.with_name(f".{self._given.state.name}.new")
        smallfile.write(new, json.dumps({**data, "revision": revision}))
        new.replace(self._given.state)


def remove_leftovers() -> None:
    """Remove all rules of kube-proxy from this namespace. Raises LinkError, OSError, CannotRunError."""
    for found in kube_proxy.find():
        kube_proxy.remove(found)
        log.info("removed %s", found)


async def _main(given: Settings) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await Proxy(given).run()


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_main(settings(argv[0])))
    except asyncio.CancelledError:
        log.info("terminated by a signal; the rules stay")
        return 0
    except (NodenetError, OSError, BaseExceptionGroup) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        log.error("cannot continue", exc_info=group)
        print(f"nodenet: {error}", file=sys.stderr, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
