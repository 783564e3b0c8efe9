"""The options of `lab up` for the agents' configuration: keys of nodenet.config.Config, for all nodes or one. Pure.

--agent-set ct_entries=4096 --agent-set node2:flow_events=false
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from nodenet import config
from nodenet.errors import BadInputError
from nodenet.lab.layout import LabPlan

# The lab sets these itself: node names, and the places of files, pins and cgroups.
OWN_KEYS = ("node_name", "kubeconfig", "run_dir", "bpffs", "cgroup")
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """`everywhere` applies to all nodes. `nodes`, by node name, overrides it."""

    everywhere: Values = field(default_factory=dict)
    nodes: Mapping[str, Values] = field(default_factory=dict)

    def of(self, node: str) -> Values:
        return {**self.everywhere, **self.nodes.get(node, {})}


def to_json(settings: Settings) -> dict[str, Any]:
    return {"everywhere": settings.everywhere, "nodes": dict(settings.nodes)}


def from_json(data: Mapping[str, Any]) -> Settings:
    return Settings(data["everywhere"], data["nodes"])


def parse(options: Iterable[str], file: Mapping[str, Any], plan: LabPlan) -> Settings:
    """`options` are [NODE:]KEY=VALUE; later ones override earlier ones. All override `file`, a decoded agent.yaml.

    A VALUE is parsed as YAML. Raises BadInputError that names the key and what was expected.
    """
    found = Settings(dict(file), {})
    nodes: dict[str, Values] = {}
    for option in options:
        place, equals, text = option.partition("=")
        node, colon, key = place.rpartition(":")
        if not equals or not key or (colon and not node):
            raise BadInputError(f"--agent-set {option!r}: expected [NODE:]KEY=VALUE", "for example ct_entries=4096")
        target = nodes.setdefault(plan.node(node).name, {}) if node else found.everywhere
        target[key] = _value(key, text)
    settings = Settings(found.everywhere, nodes)
    for each in plan.nodes:
        _check(settings.of(each.name), each.name)
    return settings


def check_proxy(settings: Settings, mode: str) -> None:
    """Raises BadInputError if the settings say who serves Services, and the proxy mode says it too."""
    if any("services" in values for values in (settings.everywhere, *settings.nodes.values())):
        raise BadInputError(f"--agent-set services: --proxy {mode} sets this key itself")


def _value(key: str, text: str) -> object:
    # Do not parse strings and paths as YAML: cluster_name=7 means the string "7".
    if config.is_text(key):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInputError(f"--agent-set {key}: not a YAML value: {text!r}") from error


def _check(values: Values, node: str) -> None:
    own = [key for key in OWN_KEYS if key in values]
    if own:
        raise BadInputError(f"agent of {node}: {', '.join(own)}: the lab sets this key itself")
    config.parse({**values, "node_name": node}, f"agent of {node}")
