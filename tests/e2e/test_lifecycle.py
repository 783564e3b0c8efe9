"""A lab's beginning and end: nothing half made, nothing left behind, nothing of the host touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.labs import NODENET, Lab, host, nodenet, running, traces, unique, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

ONE_POD = """
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {matchExpressions: [{key: a, operator: %s}]}, ingress: [{ports: [{port: %s}]}]}
"""
BAD = {
    "not YAML": ("a: {", "not YAML"),
    "no object": ("- 1", "expected a Kubernetes object"),
    "unknown kind": ("{apiVersion: v1, kind: Podd, metadata: {name: a}}", "Podd a: kind: v1 has no kind Podd"),
    "selector": (POLICY % ("Foo", 80), "NetworkPolicy default/p: spec.podSelector.matchExpressions[0].operator"),
    "port": (POLICY % ("Exists", 99999), "NetworkPolicy default/p: spec.ingress[0].ports[0].port"),
}


def up(name: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return nodenet("lab", "up", "--name", name, "--no-dns", *options, check=False)


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_manifests_are_refused_before_anything_is_made(text: str, sentence: str, tmp_path: Path) -> None:
    name, file = unique("bad"), tmp_path / "bad.yaml"
    file.write_text(text)
    done = up(name, "-f", file)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert traces(name) == []


@pytest.mark.parametrize("options", [("--nodes", "0"), ("--node-cidr-mask-size", "31"), ("-f", "/nowhere")])
def test_bad_options_are_refused(options: tuple[str, ...]) -> None:
    done = up(unique("bad"), *options)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 2


def test_two_labs_do_not_know_each_other_and_leave_nothing(tmp_path: Path) -> None:
    before = host()
    pod = tmp_path / "pod.yaml"
    pod.write_text(ONE_POD)
    with running("one", "-f", pod) as one, running("two", "-f", pod) as two:
        assert host() == before
        for lab in (one, two):
            assert [p["status"]["podIP"] for p in lab.pods("default")] == ["10.244.1.2"]
            assert traces(lab.name)
        again = up(one.name)
        assert again.returncode == 2
        assert f"lab {one.name}: it exists already" in again.stderr
        nodenet("lab", "down", "--name", one.name)
        assert traces(one.name) == []
        assert two.fetch("default", "a", "http://10.244.1.2/") == "a"
        assert nodenet("lab", "down", "--name", one.name).returncode == 0
    assert traces(two.name) == []
    assert host() == before


def test_what_cannot_be_completed_is_taken_away(tmp_path: Path) -> None:
    many = tmp_path / "many.yaml"
    many.write_text(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: many}, spec: {replicas: 7, selector: {matchLabels: "
        "{a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: x}]}}}}"
    )
    name = unique("full")
    done = up(name, "-f", many, "--node-cidr-mask-size", "29")
    assert done.returncode == 3
    assert "Pod default/many-" in done.stderr
    assert "no free address in 10.244.1.1-10.244.1.6" in done.stderr
    assert traces(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(number: signal.Signals) -> None:
    name = unique("cut")
    process = subprocess.Popen([*NODENET, "lab", "up", "--name", name], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "nodes: 1 made" in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(30) != 0
    assert traces(name) == []


def test_a_lab_whose_daemon_was_killed_is_told_and_taken_down(tmp_path: Path) -> None:
    pod = tmp_path / "pod.yaml"
    pod.write_text(ONE_POD)
    with running("dead", "--ip-family", "ipv6", "-f", pod) as lab:
        state = json.loads((Path("/run/nodenet/lab") / lab.name / "lab.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)
        until(lambda: not Path(f"/proc/{state['pid']}").exists(), "the daemon is gone")
        done = lab("status", check=False)
        assert done.returncode == 3
        assert "its daemon does not run any more" in done.stderr
        assert up(lab.name).returncode == 2
        lab("down")
        assert traces(lab.name) == []


def test_a_lab_that_is_not_there_is_told() -> None:
    done = Lab(unique("none"))("status", check=False)
    assert done.returncode == 2
    assert "there is no such lab" in done.stderr
