"""A scrape of a running agent has every metric and label that the alerts and the dashboard name."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nodenet.link import netns
from nodenet.metrics.page import PAGE
from tests.e2e.labs import Lab
from tests.monitoring import expressions, selectors

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

# Prometheus adds them: docs/install.md.
_ADDED = {"node", "job", "instance"}
_OF_HISTOGRAMS = ("_bucket", "_count", "_sum")


def scrape(lab: Lab) -> str:
    def ask() -> str:
        with urllib.request.urlopen("http://127.0.0.1:9909/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    return netns.call(f"nn.{lab.name}.node1", ask)


def test_a_scrape_has_every_metric_of_alerts_and_dashboard(shop: Lab) -> None:
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scrape(shop)):
        # A family without a sample has a line with its type: nothing was repaired yet, for example.
        names = {"counter": ("_total",), "histogram": _OF_HISTOGRAMS}.get(family.type, ("",))
        labels |= {f"{family.name}{suffix}": set() for suffix in names}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    asked = [(where, name, wanted) for where, text in expressions() for name, wanted in selectors(text)]
    assert len(asked) > 30
    missing = {(where, name) for where, name, _ in asked if name not in labels}
    assert missing == set()
    wrong = {
        (where, name, label)
        for where, name, wanted in asked
        for label in wanted.keys() - _ADDED
        if labels[name] and label not in labels[name]
    }
    assert wrong == set()


def test_the_page_has_every_metric_of_a_scrape(shop: Lab) -> None:
    text = scrape(shop)
    families = {f.name: f.type for f in text_string_to_metric_families(text)}
    page = PAGE.read_text()
    named = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    assert {name for name in named if f"| `{name}` |" not in page} == set()
    versions = re.findall(r'nodenet_build_info\{[^}]*version="([^"]*)"', text)
    assert versions == [version("nodenet")]
    assert 'nodenet_map_pressure{map="nn_ct"}' in text
    assert 'nodenet_map_pressure{map="nn_state"}' not in text


def test_promtool_accepts_a_scrape(shop: Lab) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(shop), capture_output=True, text=True, check=False
    )
    # kube-proxy's own name: a gauge that ends in _total.
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "no_local_endpoints_total" not in line]
    assert complaints == []
