"""A node whose clock is set forward and back while everything runs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from nodenet.lab.client import LabClient
from nodenet.lab.staging import Staging
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

DAY = 86400
POD = """
{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %s}},
 spec: {containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
"""
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: server}}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("clock")
    for name in ("client", "server"):
        (folder / f"{name}.yaml").write_text(POD % (name, name))
    with running("clock", "-f", folder, "--settable-clock") as found:
        yield found


def allowed(lab: Lab) -> bool:
    return lab("probe", "--from", "client", "--to", "server", "--timeout", "0.3", check=False).returncode == 0


def last_flow(lab: Lab) -> float:
    """Seconds since 1970 of the newest flow."""
    line = nodenet("observe", "--lab", lab.name, "--last", "1", "-o", "json").stdout.splitlines()[-1]
    # Nanoseconds are more digits than fromisoformat takes.
    text = re.sub(r"\.\d+", "", json.loads(line)["time"]).replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("seconds", [DAY, -3 * DAY])
def test_everything_goes_on_when_the_clock_is_set(lab: Lab, tmp_path: Path, seconds: int) -> None:
    stage = Staging(LabClient(lab.name))
    assert allowed(lab)
    stage.clock(seconds)
    try:
        (listed,) = json.loads(nodenet("lab", "trouble", "list", "-o", "json", "--name", lab.name).stdout)
        assert (listed["kind"], listed["what"]) == ("clock", f"{seconds:+} s")
        # Policy, new pods and removed ones.
        (tmp_path / "deny.yaml").write_text(DENY)
        (tmp_path / "new.yaml").write_text(POD % ("new", "new"))
        lab("apply", "-f", tmp_path, "--wait")
        until(lambda: not allowed(lab), "the policy is in force")
        lab("delete", "-f", tmp_path)
        until(lambda: allowed(lab), "the policy is gone")
        assert lab("status").returncode == 0
        # The agent really has another time: its log shows it.
        day = datetime.fromtimestamp(time.time() + seconds).strftime("%Y-%m-%d")
        assert any(line.startswith(day) and "ADD" in line for line in lab.agent_log("node1").splitlines())
    finally:
        stage.clear()
    assert not stage.list()
    assert allowed(lab)


def test_flows_have_the_time_of_the_clock(lab: Lab) -> None:
    stage = Staging(LabClient(lab.name))
    stage.clock(DAY)
    try:

        def shows_the_new_time() -> bool:
            allowed(lab)
            return abs(last_flow(lab) - time.time() - DAY) < 600

        until(shows_the_new_time, "new flows are dated by the clock that was set", 20)
    finally:
        stage.clear()
