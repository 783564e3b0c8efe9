"""Writes docs/metrics.md: `make metrics-page`. The list is made from one scrape, so it has what a scrape has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import Metric

from nodenet.abi import DropReason, EntryEnd, FairTable, MetricsEntry, MetricsKey
from nodenet.metrics import MapUsage, Metrics, Sample, WatchCount
from nodenet.metrics.kubeproxy import ProxySample
from nodenet.model import Direction

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_INGRESS = int(Direction.INGRESS)
# One value of each metric: a metric shows its labels only with a value.
EXAMPLE = Sample(
    node="",
    version="",
    healthy=True,
    ready=True,
    datapath={
        MetricsKey(0, _INGRESS): MetricsEntry(1, 1),
        MetricsKey(int(DropReason.POLICY_DENIED), _INGRESS): MetricsEntry(1, 1),
        MetricsKey(int(DropReason.MULTICAST_HANDLED), _INGRESS): MetricsEntry(1, 1),
        MetricsKey.ended(FairTable.CT, EntryEnd.EVICTED): MetricsEntry(1, 0),
    },
    maps={"nn_ct": MapUsage(1, 1)},
    objects={"pods": 1},
    flows_lost={"reader": 1},
    writes={"nn_policy": 1},
    connections={("", "answered"): 1},
    repairs={"program": 1},
    watches={"Pod": WatchCount(age=1.0)},
    proxy=ProxySample(),
)
_HEAD = """# Metrics

Made from the code by `make metrics-page`; a test compares. `metrics_address` ([operations.md](operations.md)) serves
all of them at `/metrics`, `proxy_metrics_address` those of kube-proxy and of the process. Counters start with the
agent; those of packets, bytes and ended table entries start when their map was made, and survive a restart of the
agent. Alerts and a dashboard: [install.md](install.md).
"""
_GROUPS = {
    "nodenet_": "## The agent and its datapath",
    "kubeproxy_": "## kube-proxy's names\n\nTheir meaning: [services.md](services.md#health). Absent with "
    "`services: false`.",
    "process_": "## The process\n\nAs every Prometheus client reports them.",
}


class _Example:
    """A source with EXAMPLE."""

    def sample(self) -> Sample:
        return EXAMPLE

    def proxy_sample(self) -> ProxySample | None:
        return EXAMPLE.proxy

    def missing(self) -> list[str]:
        return []


def families() -> list[Metric]:
    """All metrics of an agent, each with a value."""
    metrics = Metrics(_Example())
    metrics.cni_operation("ADD", 1.0, failed=False)
    metrics.proxy.answered("healthz", 200)
    metrics.proxy.answered("livez", 200)
    return sorted(metrics.registry.collect(), key=lambda family: family.name)


def page(found: Iterable[Metric]) -> str:
    """The text of docs/metrics.md."""
    found = list(found)
    return "\n".join([_HEAD, *(line for prefix, title in _GROUPS.items() for line in _group(found, prefix, title))])


def _group(found: Iterable[Metric], prefix: str, title: str) -> Iterator[str]:
    yield from (title, "", "| metric | type | labels | meaning |", "|---|---|---|---|")
    for family in found:
        if family.name.startswith(prefix):
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            name = f"{family.name}_total" if family.type == "counter" else family.name
            words = ", ".join(f"`{label}`" for label in labels)
            yield f"| `{name}` | {family.type} | {words} | {family.documentation.replace('|', '/')} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(families()))
