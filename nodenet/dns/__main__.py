"""The DNS server of a lab's pod: `python -m nodenet.dns --kubeconfig FILE --ready-fd FD [--name POD] [--upstream IP]
[--port PORT/PROTOCOL]...`. `nodenet lab` starts it in the pod's network namespace and cgroup.

--ready-fd gets one line: `ready` when the first lists have arrived and port 53 is open, or `error: <what>`; then the
process ends with status 1. Further ports of the pod (metrics, health) answer with its name, as in other pods.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nodenet.dns.objects import KINDS, EndpointSlice, Namespace, Service
from nodenet.dns.server import Resolver, Sockets
from nodenet.dns.zone import DOMAIN, Zone, build
from nodenet.errors import NodenetError
from nodenet.kinds import ApiKind
from nodenet.kube import config
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.store import Delta, Listing, StoreEvent

# Seconds until the API must have answered. The lab waits a little longer for the line on --ready-fd.
_SYNC_SECONDS = 8.0
# The uid under which questions are answered; see standin.py.
_USER = 64999


class Cluster:
    """The objects of the API, and the zone that is made of them when it is asked for."""

    def __init__(self) -> None:
        self._objects: dict[ApiKind, dict[tuple[str, str], object]] = {}
        self._zone: Zone | None = None
        self.synced = asyncio.Event()

    def feed(self, kind: ApiKind, event: StoreEvent) -> None:
        if isinstance(event, Listing):
            before = self._objects.get(kind, {})
            kept = {key: before[key] for key in event.keep if key in before}
            self._objects[kind] = kept | {kind.key(obj): obj for obj in event.objects}
        elif isinstance(event, Delta):
            self._objects[kind][kind.key(event.obj)] = event.obj
        else:
            self._objects[kind].pop(event.key, None)
        self._zone = None
        if len(self._objects) == len(KINDS):
            self.synced.set()

    def zone(self) -> Zone:
        """Made again after changes, when the next question comes."""
        if self._zone is None:
            found = [obj for objects in self._objects.values() for obj in objects.values()]
            self._zone = build(
                [obj for obj in found if isinstance(obj, Service)],
                [obj for obj in found if isinstance(obj, EndpointSlice)],
                [obj for obj in found if isinstance(obj, Namespace)],
                DOMAIN,
            )
        return self._zone


async def serve(options: argparse.Namespace, access: ClusterAccess, sockets: Sockets) -> int:
    """Run until an error or a signal."""
    cluster = Cluster()

    async def follow(client: KubeClient, kind: ApiKind) -> None:
        async for event in client.watch(kind):
            cluster.feed(kind, event)

    async with KubeClient(access, KINDS) as client, asyncio.TaskGroup() as group:
        for kind in KINDS:
            group.create_task(follow(client, kind))
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await cluster.synced.wait()
        except TimeoutError:
            error = next((stats.error for stats in client.stats.values() if stats.error), "no answer")
            report(options.ready_fd, f"error: no names are known, because the API cannot be read: {error}")
            os._exit(1)
        await sockets.serve(options.name, Resolver(cluster.zone, options.upstream))
        report(options.ready_fd, "ready")
    return 0


def report(fd: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    if fd >= 0:
        os.write(fd, line.replace("\n", " ").encode() + b"\n")
        os.close(fd)


def drop_root() -> None:
    """Change to an unprivileged user, which also drops all capabilities."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_USER, _USER, _USER)
        os.setresuid(_USER, _USER, _USER)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="nodenet.dns")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--name", default="dns")
    parser.add_argument("--upstream", default="")
    parser.add_argument("--port", action="append", default=[])
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        sockets = Sockets(options.port)
        access = config.load(options.kubeconfig)
    except (OSError, NodenetError) as error:
        report(options.ready_fd, f"error: {error}")
        return 1
    drop_root()
    return asyncio.run(serve(options, access, sockets))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
