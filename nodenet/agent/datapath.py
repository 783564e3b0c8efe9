"""The agent's access to the kernel: loads or adopts the programs, and opens maps and events."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from nodenet import tables
from nodenet.agent import sizes
from nodenet.agent.features import features
from nodenet.bpf import build, loader, probe
from nodenet.bpf.grace import ProgramsGrace
from nodenet.bpf.pins import Pins
from nodenet.bpf.ringbuf import EventReader
from nodenet.bpf.tables import BpfTable
from nodenet.config import Config
from nodenet.errors import CannotRunError
from nodenet.link import hierarchy, kube_proxy
from nodenet.link.handle import Link
from nodenet.tables import state

log = logging.getLogger(__name__)


class Datapath:
    """Opened once per agent. `adopted`: the programs of the previous agent process were up to date, so nothing was
    loaded."""

    def __init__(self, config: Config) -> None:
        self.config = config
        refuse_kube_proxy(config)
        self.features = features()
        probe.require(self.features)
        self.cgroup = cgroup_of(config)
        self.pins = Pins(config.bpffs)
        refuse_later_state(config)
        # Entries by key of the configuration.
        self.entries = sizes.choose(config, self.pins, sizes.node_memory())
        objects = build.build_all(config.cache_dir, probe.available(self.features, probe.CAST_CTX))
        self.loaded = loader.load(objects, self._settings(), self.pins)
        # After the load: a version that cannot be loaded here must not prevent the way back.
        self.pins.set_state(state.STATE)
        sizes.store(config, self.pins, self.entries)
        self.tables = {name: BpfTable(name, self.pins.map(name)) for name in tables.KEYED}
        # The pins that `check_pins` found right.
        self._right_pins: dict[Path, tuple[int, int]] = {}
        self.grace = ProgramsGrace()
        copied = self.loaded.carrying.copied
        for name in self.loaded.replaced_maps:
            if tables.MAPS[name].slots:
                continue  # filled from its table
            start = f"{copied[name]} entries were copied" if name in copied else "it starts empty"
            log.warning("map %s had another shape: %s", name, start)
        for name in copied.keys() - set(self.loaded.replaced_maps):
            log.warning("map %s: the switch to it was interrupted, %d entries were copied", name, copied[name])
        log.info("datapath %s: %s", self.loaded.key, "adopted" if self.adopted else "loaded")

    @property
    def adopted(self) -> bool:
        return self.loaded.adopted

    def _settings(self) -> loader.DatapathConfig:
        config = self.config
        redirect_peer = probe.available(self.features, "helper redirect_peer")
        return loader.DatapathConfig(
            enforce_policy=config.enforce_policy,
            # kube-proxy's answers must pass the node's stack, which translates them back.
            redirect_peer=config.redirect_peer and config.services and redirect_peer,
            refuse_errno=probe.available(self.features, "helper set_retval"),
            trace_events=config.flow_events,
            kernel_structs=probe.available(self.features, probe.OFFLOAD),
            serve_uplinks=config.serves_uplinks,
            source_port=config.source_port_range[0],
            source_ports=config.source_port_range[1] - config.source_port_range[0] + 1,
            netns_cookie=netns_cookie(),
            sizes=tables.sizes(self.entries),
        )

    def program(self, name: str) -> int:
        """The descriptor of a loaded program."""
        return self.loaded.programs[name]

    def attach_sockets(self) -> list[str]:
        """Attach the socket programs to the node's cgroup. Returns the names of those that were not up to date. Without
        `services` those of an earlier configuration are detached, and nothing is attached."""
        if not self.config.services:
            if gone := loader.detach_cgroup(self.pins):
                log.info("Services are left to kube-proxy: detached %s", ", ".join(gone))
            return []
        return loader.attach_cgroup(self.loaded, self.cgroup, self.pins)

    def check_pins(self) -> loader.PinCheck:
        """Check all pins and create missing ones again."""
        maps = {name: table.fd for name, table in self.tables.items()}
        return loader.check_pins(self.loaded, maps, self.pins, self._right_pins)

    def forget_old(self) -> None:
        """Call it when all endpoints have the new programs. Copies what the old programs wrote in the meantime, and
        unpins what is no longer used."""
        try:
            for name, count in self.loaded.carrying.finish().items():
                log.info("map %s: %d entries that were written during the switch were copied", name, count)
        except OSError as error:
            # The old maps stay for the next start. Until then the datapath treats their connections as found in their
            # middle (docs/decisions/0016).
            log.warning("connections of the switch were not copied: %s", error)
        loader.prune(self.loaded, self.pins)

    def read_events(self, receive: Callable[[bytes], None]) -> EventReader:
        return EventReader(self.pins.map("nn_events"), receive)

    def close(self) -> None:
        """Close all descriptors. Pinned and attached objects stay in the kernel and continue to work."""
        self.grace.close()
        for table in self.tables.values():
            table.close()
        loader.close(self.loaded)


def cgroup_of(config: Config) -> Path:
    """The cgroup for the socket programs: the configured one, or the node's root. Raises CannotRunError."""
    if config.cgroup is not None:
        return hierarchy.require_cgroup(config.cgroup)
    return hierarchy.node_root(os.environ)


def refuse_kube_proxy(config: Config) -> None:
    """Raises CannotRunError if both kube-proxy and we would serve ClusterIPs: which of both translates a packet would
    depend on where the packet comes from."""
    if not config.services:
        return
    found = list(map(str, kube_proxy.serving()))
    if found:
        raise CannotRunError(
            f"kube-proxy's rules are on this node: {'; '.join(found)}",
            "stop kube-proxy and run `nodenet cleanup --kube-proxy`, or set `services: false` to leave Services to it",
        )


def refuse_later_state(config: Config) -> None:
    """Raises CannotRunError if a later version kept what this one cannot read. Nothing has been changed then, and that
    version's programs continue to work."""
    try:
        state.require_readable(Pins(config.bpffs).state(), str(config.bpffs))
    except CannotRunError as error:
        if not config.allow_downgrade:
            raise
        log.warning("allow_downgrade: %s", error)


def netns_cookie() -> int:
    """The cookie of this process's network namespace, which is the node's; 0 before Linux 5.14."""
    try:
        with Link() as link:
            return link.netns_cookie()
    except OSError:
        return 0
