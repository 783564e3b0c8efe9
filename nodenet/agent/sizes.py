"""Decides how many entries the maps have: configured, kept from the pinned maps, or computed from the node's memory.

A computed size is kept as long as its setting is: a node whose memory changes, or another version with other rules,
replaces no map at a restart. The settings are stored beside the pinned maps (nodenet/bpf/pins.py), so both are gone
after a reboot, and the sizes are computed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from nodenet import tables
from nodenet.bpf.pins import Pins, map_info
from nodenet.config import Config
from nodenet.tables import memory

log = logging.getLogger(__name__)

# The stored setting of a size that is configured. The others are shares of the memory in millionths.
_CONFIGURED = "set"


def node_memory() -> int:
    """Bytes of the node's memory. A limit of the agent's own cgroup does not count: maps belong to the kernel."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose(config: Config, pins: Pins, bytes_: int) -> dict[str, int]:
    """Entries by key of the configuration, for a node with so many bytes of memory. Raises OSError if a pinned map
    cannot be read."""
    stored, wanted = pins.sizes(), settings(config)
    found: dict[str, int] = {}
    for key, setting in wanted.items():
        path = pins.map(memory.map_of(key).name)
        if key in config.entries:
            found[key] = config.entries[key]
        # Maps of a version that stored no settings are kept too.
        elif stored.get(key, setting) == setting and path.exists():
            found[key] = int(map_info(path).max_entries)
        else:
            found[key] = memory.entries(key, bytes_, config.map_memory)
    return found


def settings(config: Config) -> dict[str, str]:
    """What decides the size of each key, as it is stored."""
    share = str(round(config.map_memory * 1_000_000))
    return {key: _CONFIGURED if key in config.entries else share for key in tables.SIZE_KEYS}


def store(config: Config, pins: Pins, entries: Mapping[str, int]) -> None:
    """Call it when the maps have these sizes."""
    if pins.sizes() != settings(config):
        pins.set_sizes(settings(config))
    log.info("sizes of maps: %s", ", ".join(f"{key} {number}" for key, number in sorted(entries.items())))
