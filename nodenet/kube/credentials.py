"""Credentials that another program prints: `exec` of a kubeconfig's user.

The protocol: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins. Only
commands that a person runs use it: an agent would have to run the program again whenever the credentials expire.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nodenet.errors import BadInputError, CannotRunError

_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# Seconds. A program may have to ask a cloud.
_TIMEOUT = 60.0

Object = Mapping[str, Any]


def with_plugin(user: Object, path: Path, name: str) -> dict[str, Any]:
    """The user of a kubeconfig with the credentials of its `exec` in place of it. The program runs once.

    Raises BadInputError naming the field, and CannotRunError if the program is missing or fails.
    """
    where = f"{path}: users[{name}].exec"
    spec = user["exec"]
    if not isinstance(spec, Mapping) or not isinstance(spec.get("command"), str):
        raise BadInputError(f"{where}.command: required, expected text")
    if spec.get("apiVersion") not in _VERSIONS:
        raise BadInputError(
            f"{where}.apiVersion: expected one of {', '.join(_VERSIONS)}, got {spec.get('apiVersion')!r}"
        )
    if spec.get("interactiveMode") == "Always":
        raise BadInputError(f"{where}.interactiveMode: Always is not supported: the program runs without a terminal")
    status = _status(_output(spec, path, where), where)
    token, certificate, key = (status.get(each) for each in ("token", "clientCertificateData", "clientKeyData"))
    if not token and not (certificate and key):
        raise CannotRunError(f"{where}: {spec['command']} printed neither a token nor a certificate with its key")
    found = {each: value for each, value in user.items() if each != "exec"}
    if token:
        found["token"] = token
    if certificate and key:
        found["client-certificate-data"] = base64.b64encode(str(certificate).encode()).decode()
        found["client-key-data"] = base64.b64encode(str(key).encode()).decode()
    return found


def _output(spec: Object, path: Path, where: str) -> str:
    """What the program prints. A command with a slash is relative to the kubeconfig, as for kubectl."""
    command = spec["command"]
    program = str(path.parent / command) if "/" in command else shutil.which(command)
    hint = str(spec.get("installHint") or "").strip()
    if program is None or not os.access(program, os.X_OK):
        raise CannotRunError(f"{where}: {command}: no such program", hint)
    info = {"apiVersion": spec["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    environment = {**os.environ, "KUBERNETES_EXEC_INFO": json.dumps(info)}
    for entry in spec.get("env") or ():
        if isinstance(entry, Mapping):
            environment[str(entry.get("name"))] = str(entry.get("value") or "")
    words = [program, *map(str, spec.get("args") or ())]
    try:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRunError(f"{where}: {command}: {error}", hint) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise CannotRunError(f"{where}: {command} ended with exit code {done.returncode}: {said[0]}", hint)
    return done.stdout.decode(errors="replace")


def _status(text: str, where: str) -> Object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CannotRunError(f"{where}: the program did not print JSON: {error}") from error
    status = found.get("status") if isinstance(found, dict) else None
    if not isinstance(status, dict):
        raise CannotRunError(f"{where}: the program printed no ExecCredential with a status")
    return status
