"""What a soak was asked to do, and what came of it."""

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
    """`probes` is {pod: {target: counts}}; `drops` what the agents told of allowed packets
    that were dropped; `leftover` what was there after the churn and not before it."""

    settings: Settings
    seconds: float = 0.0
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: list[Figures] = field(default_factory=list)
    troubles: dict[str, Any] = field(default_factory=dict)
    drops: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
