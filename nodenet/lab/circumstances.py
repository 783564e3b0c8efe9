"""What a probe should be read with: agents that do not run, and a missing route."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodenet.lab import names
from nodenet.link import netns

Object = Mapping[str, Any]


def agents(found: Iterable[Mapping[str, Any]], nodes: Iterable[str]) -> Iterator[str]:
    """A sentence for each of `nodes` whose agent does not run: its rules are old. `found`: the agents of the lab's
    status. Pure."""
    states = {str(agent["node"]): str(agent["state"]) for agent in found}
    for node in dict.fromkeys(nodes):
        state = states.get(node, "ready")
        if state != "ready":
            yield f"the agent of {node} is {state}: the node's rules are those from before, whatever changed since"


def route(lab: str, node: str, address: str, through: Iterable[str] = ()) -> str:
    """A sentence if the node has no route to an address, or none `through` one of these addresses (of the node with the
    pod; empty: any will do). Else ""."""
    command = ["ip", "-6" if ":" in address else "-4", "-j", "route", "get", address]
    try:
        done = netns.run(names.node_netns(lab, node), command, capture_output=True, text=True, timeout=5)
        found = json.loads(done.stdout)[0] if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"the route of {node} to {address} could not be read: {error}"
    if done.returncode:
        return f"{node} has no route to {address}: {done.stderr.strip().rpartition(': ')[2] or 'unreachable'}"
    wanted, gateway = set(through), found.get("gateway")
    if wanted and gateway not in wanted:
        where = f"via {gateway}" if gateway else f"to {found.get('dev')}"
        return f"{node} has no route to {address} via {' or '.join(sorted(wanted))}: its packets go {where}"
    return ""
