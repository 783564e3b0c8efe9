"""Alerts and dashboard: their syntax, what raises the alerts, and the values of labels that they name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nodenet import tables
from nodenet.abi import DropReason
from tests.monitoring import MONITORING, expressions, rules, selectors

HERE = Path(__file__).parent


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def test_every_alert_says_what_and_which_command_helps() -> None:
    alerts = [rule for group in rules()["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 12
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "command"}
        assert re.match(r"(nodenet|kubectl) ", rule["annotations"]["command"])


def test_expressions_name_values_that_exist() -> None:
    known = {
        "map": set(tables.KEYED),
        "reason": {reason.name for reason in DropReason},
        "result": {"success", "error"},
        "verb": {"ADD", "DEL", "CHECK", "GC", "STATUS"},
    }
    found = set()
    for where, expression in expressions():
        for _, labels in selectors(expression):
            for label, value in labels.items():
                if label in known:
                    found.add(label)
                    for part in value.split("|"):
                        pattern = re.compile(part)
                        assert any(pattern.fullmatch(one) for one in known[label]), f"{where}: {label}={value}"
    assert found == known.keys()


def test_panels_have_places_of_their_own() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules()))
    done = subprocess.run([promtool(), "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "alerts.yaml").write_text((HERE / "alerts.yaml").read_text())
    done = subprocess.run(
        [promtool(), "test", "rules", tmp_path / "alerts.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
