"""The parts of a running agent, for the code that reports on them."""

from __future__ import annotations

from dataclasses import dataclass

from nodenet.agent.datapath import Datapath
from nodenet.agent.events import Events
from nodenet.agent.health import Health
from nodenet.agent.keepers import Keepers
from nodenet.agent.watch import ApiWatch
from nodenet.engine import Compiled, Engine
from nodenet.kinds import KINDS
from nodenet.rpc.observer import ServerInfo


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts. The agent's configuration is in `datapath`."""

    info: ServerInfo
    datapath: Datapath
    engine: Engine
    api: ApiWatch
    events: Events
    keepers: Keepers
    health: Health


def count_objects(compiled: Compiled) -> dict[str, int]:
    """The number of objects of each kind in the last compilation."""
    counts = {kind.place: len(getattr(compiled.snapshot, kind.place)) for kind in KINDS}
    return counts | {"identities": len(compiled.names.identities)}
