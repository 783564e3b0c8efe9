"""What the alerts and the dashboard ask Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[1] / "daemonset" / "chart" / "monitoring"
_METRIC = re.compile(r"\b(nodenet_[a-z0-9_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def rules() -> dict[str, Any]:
    """The rule file in the PrometheusRule."""
    found: dict[str, Any] = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(where it is, PromQL) of every alert and every panel."""
    for group in rules()["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(metric, value by label) of each selector of ours; the values are as written, also those of patterns."""
    for name, matchers in _METRIC.findall(expression):
        yield name, {label: value for label, _, value in _MATCHER.findall(matchers)}
