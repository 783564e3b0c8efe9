"""An overlay of daemonset/, the values that change it, and the objects that come of both."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from nodenet import config
from nodenet.cluster import kustomize
from nodenet.cluster.kustomize import containers
from nodenet.errors import BadInputError
from nodenet.kube.config import server_url
from nodenet.tables import state

Obj = dict[str, Any]

NAME = NAMESPACE = "nodenet"
# The overlay for clusters with kube-proxy.
BESIDE = "beside-kube-proxy"
# On the DaemonSet: what `nodenet upgrade` starts from.
RELEASE = "nodenet.io/release"
# On the DaemonSet: the state (nodenet/tables/state.py) of its version.
STATE = "nodenet.io/state"
# On its pods: a changed configuration starts them again.
CONFIG_DIGEST = "nodenet.io/config"
_CONFIG = "agent.yaml"
_API_SERVERS = "api-servers"
# Values that add a component, by the names of the chart's values.
_COMPONENTS = {
    "mountBpffs": "mount-bpffs",
    "kernelBefore511": "kernel-before-5.11",
    "monitoring.enabled": "monitoring",
}
# The values of --set. Their names are those of the chart (daemonset/chart/values.yaml).
VALUES = {
    "image.repository": "the image, without a tag",
    "image.tag": "its tag",
    "image.pullPolicy": "IfNotPresent, Always or Never",
    "apiServers": "HOST:PORT,... as the nodes reach the API servers",
    "config.KEY": "a key of the agent's configuration (docs/operations.md)",
    "updateStrategy.rollingUpdate.maxUnavailable": "how many nodes a rollout replaces at once: a number, or 10%",
    **dict.fromkeys(_COMPONENTS, "true or false"),
}
# Objects that others need come first.
_ORDER = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap")


@dataclass(frozen=True, slots=True)
class Release:
    """`values`: by the names of VALUES, as the user gave them; they are stored. `discovered`: the addresses of the API
    servers that the cluster says, for a release that names none; they may change, so they are not stored."""

    overlay: str
    values: Mapping[str, str] = field(default_factory=dict)
    discovered: str = ""

    def with_values(self, values: Mapping[str, str]) -> Release:
        return replace(self, values={**self.values, **values})


def parse_values(words: Iterable[str]) -> dict[str, str]:
    """The words NAME=VALUE of --set. Raises BadInputError naming the value."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        key = name.removeprefix("config.") if name.startswith("config.") else ""
        if not equals or not (name in VALUES or key) or name == "config.KEY":
            raise BadInputError(f"--set {word}: expected NAME=VALUE; the names: {', '.join(VALUES)}")
        if name in _COMPONENTS and value not in ("true", "false"):
            raise BadInputError(f"--set {word}: expected true or false")
        if name == "apiServers":
            _check_servers(value, f"--set {word}")
        if key:
            _check_config({key: _yaml(value, f"--set {word}")}, f"--set {word}")
        found[name] = value
    return found


def _check_servers(value: str, source: str) -> None:
    """No agent would start with an address that it cannot read. "" means those that the overlay or the cluster says."""
    for text in value.split(",") if value else ():
        try:
            server_url(text)
        except BadInputError as error:
            raise BadInputError(f"{source}: expected HOST:PORT,..., got {text!r}") from error


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: expected a value in YAML") from error


def objects(release: Release) -> list[Obj]:
    """All objects, in the order in which they are applied. Raises BadInputError for an overlay that does not exist."""
    values = release.values
    added = [component for name, component in _COMPONENTS.items() if values.get(name) == "true"]
    found = copy.deepcopy(kustomize.render(release.overlay, added))
    [config_map] = [obj for obj in found if _is(obj, "ConfigMap")]
    [daemon_set] = [obj for obj in found if _is(obj, "DaemonSet")]
    _set_config(config_map["data"], values)
    config_map["data"][_API_SERVERS] = config_map["data"][_API_SERVERS] or release.discovered
    _set_daemon_set(daemon_set, values)
    digest = hashlib.sha256(json.dumps(config_map["data"], sort_keys=True).encode()).hexdigest()[:16]
    _annotate(daemon_set["spec"]["template"], CONFIG_DIGEST, digest)
    _annotate(daemon_set, RELEASE, json.dumps({"overlay": release.overlay, "values": dict(values)}, sort_keys=True))
    return sorted(found, key=_rank)


def of(daemon_set: Mapping[str, Any]) -> Release | None:
    """The release of an installed DaemonSet; None if `nodenet install` did not make it."""
    text = (daemon_set["metadata"].get("annotations") or {}).get(RELEASE)
    if text is None:
        return None
    try:
        data = json.loads(text)
        return Release(str(data["overlay"]), {str(key): str(value) for key, value in data["values"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"DaemonSet {NAMESPACE}/{NAME}: metadata.annotations[{RELEASE}]: not readable: {error}", "give --overlay"
        ) from error


def require_readable(daemon_set: Mapping[str, Any], wanted: Release) -> None:
    """Raises CannotRunError if the installed version kept what this one cannot read, unless `wanted` allows it."""
    text = (daemon_set["metadata"].get("annotations") or {}).get(STATE, "")
    allowed = wanted.values.get("config.allow_downgrade", "false")
    if text.isdecimal() and _yaml(allowed, "--set config.allow_downgrade") is not True:
        state.require_readable(int(text), f"DaemonSet {NAMESPACE}/{NAME}")


def api_servers(release: Release) -> str:
    """The addresses of the API servers that the agents get; "" if they use the `kubernetes` Service."""
    [config_map] = [obj for obj in objects(release) if _is(obj, "ConfigMap")]
    return str(config_map["data"][_API_SERVERS])


def needs_api_servers(release: Release) -> bool:
    """Without kube-proxy the `kubernetes` Service does not work before the agent does."""
    return release.overlay != BESIDE


def _set_config(data: Obj, values: Mapping[str, str]) -> None:
    if "apiServers" in values:
        data[_API_SERVERS] = values["apiServers"]
    changes = {
        name.removeprefix("config."): yaml.safe_load(value)
        for name, value in values.items()
        if name.startswith("config.")
    }
    if changes:
        merged = {**(yaml.safe_load(data[_CONFIG]) or {}), **changes}
        _check_config(merged, "--set config")
        data[_CONFIG] = yaml.safe_dump(merged)


def _check_config(data: Mapping[str, Any], source: str) -> None:
    """The agent would not start with a key that it does not know. The name of the node comes from its environment."""
    config.parse({"node_name": "node", **data}, source)


def _set_daemon_set(daemon_set: Obj, values: Mapping[str, str]) -> None:
    for container in containers(daemon_set):
        repository, _, tag = container["image"].rpartition(":")
        container["image"] = f"{values.get('image.repository', repository)}:{values.get('image.tag', tag)}"
        container["imagePullPolicy"] = values.get("image.pullPolicy", container["imagePullPolicy"])
    most = values.get("updateStrategy.rollingUpdate.maxUnavailable")
    if most is not None:
        rolling = daemon_set["spec"]["updateStrategy"]["rollingUpdate"]
        rolling["maxUnavailable"] = int(most) if most.isdigit() else most


def _annotate(obj: Obj, key: str, value: str) -> None:
    obj["metadata"].setdefault("annotations", {})[key] = value


def _is(obj: Mapping[str, Any], kind: str) -> bool:
    return bool(obj["kind"] == kind) and obj["metadata"]["name"] == NAME


def _rank(obj: Mapping[str, Any]) -> int:
    return _ORDER.index(obj["kind"]) if obj["kind"] in _ORDER else len(_ORDER)
