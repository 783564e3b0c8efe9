"""A small client of the lab's API for the soak. One request at a time, without a cache; thread-safe."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from nodenet.kinds import BY_NAME
from perf.soak.world import Object

_TIMEOUT = 30.0


class Api:
    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._server = config["clusters"][0]["cluster"]["server"]
        token = config["users"][0]["user"].get("token", "") if config.get("users") else ""
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def create(self, entry: Object) -> None:
        self._call("POST", self._path(entry, named=False), entry)

    def delete(self, entry: Object) -> bool:
        """Delete without a grace period. Returns False if the object did not exist."""
        try:
            self._call("DELETE", self._path(entry), {"gracePeriodSeconds": 0})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def label(self, namespace: str, pod: str, name: str, value: str) -> None:
        body = {"metadata": {"labels": {name: value}}}
        self._call("PATCH", f"/api/v1/namespaces/{namespace}/pods/{pod}", body, "application/merge-patch+json")

    def pods(self, namespace: str) -> list[Object]:
        items: list[Object] = self._call("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        return items

    def service_ip(self, namespace: str, name: str) -> str:
        address: str = self._call("GET", f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]
        return address

    def is_ready(self, namespace: str, name: str) -> bool:
        found = self._call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        conditions = found.get("status", {}).get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

    @staticmethod
    def _path(entry: Object, named: bool = True) -> str:
        metadata = entry["metadata"]
        return BY_NAME[entry["kind"]].resource.path(metadata["namespace"], metadata["name"] if named else "")

    def _call(self, verb: str, path: str, body: Object | None = None, kind: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | {"Content-Type": kind}
        request = urllib.request.Request(self._server + path, method=verb, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return json.load(answer)
