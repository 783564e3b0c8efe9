"""The settings and the result of a soak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perf.soak.figures import Figures


@dataclass(frozen=True, slots=True)
class Settings:
    minutes: float
    seed: int
    batch: int
    kill_every: float
    outage_every: float
    mib_per_hour: float


@dataclass(slots=True)
class Result:
    """`probes`: {pod: {target: counts}}. `drops`: dropped packets that policy allows, from the agents' flows.
    `leftover`: differences between the counts before and after the churn."""

    settings: Settings
    seconds: float = 0.0
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: list[Figures] = field(default_factory=list)
    troubles: dict[str, Any] = field(default_factory=dict)
    drops: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
