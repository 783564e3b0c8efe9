"""Credential plugins of kubeconfigs: what they are given, and what becomes of what they print."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.kube import credentials
from nodenet.kube.config import from_kubeconfig

V1 = "client.authentication.k8s.io/v1"


def kubeconfig(folder: Path, script: str, **spec: Any) -> Path:
    """A kubeconfig whose plugin is a shell script beside it."""
    plugin = folder / "bin" / "plugin"
    plugin.parent.mkdir(exist_ok=True)
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o755)
    path = folder / "config"
    user = {"exec": {"apiVersion": V1, "command": "./bin/plugin", **spec}}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "me"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://10.0.0.1:8080"}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def printing(**status: str) -> str:
    return f"echo '{json.dumps({'apiVersion': V1, 'kind': 'ExecCredential', 'status': status})}'"


def test_the_token_that_the_program_prints(tmp_path: Path) -> None:
    script = 'echo "$1 $REGION $KUBERNETES_EXEC_INFO" > "$(dirname "$0")/asked"; ' + printing(token="t0k3n")
    path = kubeconfig(tmp_path, script, args=["get-token"], env=[{"name": "REGION", "value": "here"}])
    assert from_kubeconfig(path, plugins=True).bearer() == "t0k3n"
    word, region, info = (tmp_path / "bin" / "asked").read_text().split(" ", 2)
    assert (word, region) == ("get-token", "here")
    assert json.loads(info)["spec"] == {"interactive": False}
    assert json.loads(info)["apiVersion"] == V1


def test_a_certificate_becomes_that_of_the_user(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, printing(clientCertificateData="PEM-C", clientKeyData="PEM-K"))
    spec = yaml.safe_load(path.read_text())["users"][0]["user"]
    found = credentials.with_plugin({**spec, "other": 1}, path, "me")
    decoded = [base64.b64decode(found[f"client-{name}-data"]) for name in ("certificate", "key")]
    assert (decoded, found["other"], "exec" in found) == ([b"PEM-C", b"PEM-K"], 1, False)


def test_an_agent_runs_no_program(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, f"touch {tmp_path}/ran; " + printing(token="t"))
    with pytest.raises(BadInputError, match=r"users\[me\]\.exec: not supported"):
        from_kubeconfig(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("script", "spec", "words"),
    [
        ("echo oh >&2; echo no access >&2; exit 3", {}, "./bin/plugin ended with exit code 3: no access"),
        ("exit 1", {}, "exit code 1: no message"),
        ("echo nope", {}, "did not print JSON"),
        ("echo '[]'", {}, "no ExecCredential with a status"),
        (printing(), {}, "neither a token nor a certificate with its key"),
        (printing(clientCertificateData="x"), {}, "neither a token nor a certificate with its key"),
        ("", {"command": "no-such-program-here"}, "no-such-program-here: no such program"),
        ("", {"command": "./nothing"}, "./nothing: no such program"),
        ("", {"command": 7}, "users[me].exec.command: required, expected text"),
        ("", {"apiVersion": "v1"}, "users[me].exec.apiVersion: expected one of client.authentication.k8s.io/v1"),
        ("", {"interactiveMode": "Always"}, "Always is not supported"),
    ],
)
def test_what_fails_is_named(tmp_path: Path, script: str, spec: dict[str, Any], words: str) -> None:
    path = kubeconfig(tmp_path, script, **{"installHint": "install it", **spec})
    with pytest.raises(NodenetError) as caught:
        from_kubeconfig(path, plugins=True)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    if "no such program" in words:
        assert caught.value.hint == "install it"


def test_a_program_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_TIMEOUT", 0.2)
    started = time.monotonic()
    with pytest.raises(CannotRunError, match="timed out"):
        from_kubeconfig(kubeconfig(tmp_path, "exec sleep 30"), plugins=True)
    assert time.monotonic() - started < 20
