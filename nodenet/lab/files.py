"""The files of a lab's folder: what `lab up` writes for the daemon, the agents, the plugin and kubectl, and reads back.

lab.json                the plan's inputs, the daemon's pid and port
dns.kubeconfig          of the DNS server in the lab's pods (cluster_dns.py)
kubeconfig              for people: the API on 127.0.0.1, and the administrator's token (readable only by root)
daemon.log, lab.sock    the daemon's log and control socket
<node>/agent.yaml, kubeconfig, agent.log, agent.sock, cni.sock, endpoints/, bpf/
<node>/cni/10-nodenet.conflist, ipam/, results/
<node>/kube-proxy.json, kube-proxy.log    of kube-proxy's stand-in (proxies.py)
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import cluster_dns, groups, layout, names, proxies, settings
from nodenet.lab.guard import Tokens
from nodenet.lab.layout import LabPlan, NodePlan
from nodenet.lab.settings import Settings
from nodenet.link import cgroups

NETWORK = "nodenet"
_CNI_VERSION = "1.1.0"
NO_SETTINGS = Settings()


@dataclass(frozen=True, slots=True)
class LabFiles:
    """Paths of one lab. They need not exist."""

    lab: str

    @property
    def folder(self) -> Path:
        return names.lab_dir(self.lab)

    @property
    def state(self) -> Path:
        return self.folder / "lab.json"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def dns_kubeconfig(self) -> Path:
        return self.folder / "dns.kubeconfig"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    @property
    def socket(self) -> Path:
        return self.folder / "lab.sock"

    @property
    def plugins(self) -> Path:
        """The counterpart of a node's /opt/cni/bin. All nodes of the lab share it."""
        return self.folder / "cni-bin"

    def node(self, node: str) -> Path:
        return names.node_dir(self.lab, node)

    def conflist(self, node: str) -> Path:
        return self.node(node) / "cni" / "10-nodenet.conflist"

    def results(self, node: str) -> Path:
        return self.node(node) / "cni" / "results"


@dataclass(frozen=True, slots=True)
class Dns:
    """`pods`: whether the lab makes DNS pods and their Service. `upstream`: the address of the DNS server for names
    outside of the cluster; "": there is none."""

    pods: bool = True
    upstream: str = ""


DEFAULT_DNS = Dns()


@dataclass(frozen=True, slots=True)
class LabState:
    """The content of lab.json. `pid` and `port` are 0 until the daemon has reported them. `agents`: settings for the
    agents' configuration files. `proxy`: what serves Services, one of proxies.MODES."""

    plan: LabPlan
    mask_size: int
    agents: Settings = NO_SETTINGS
    pid: int = 0
    port: int = 0
    proxy: str = proxies.EBPF
    dns: Dns = DEFAULT_DNS

    @property
    def alive(self) -> bool:
        """True if a process with the daemon's pid runs in the lab's control cgroup. The cgroup rules out another
        process that got the same pid later."""
        return self.pid in cgroups.processes(groups.lab_root(self.plan.name) / groups.CONTROL)


def write_state(state: LabState) -> None:
    data = layout.to_json(state.plan, state.mask_size)
    data |= {"agents": settings.to_json(state.agents), "pid": state.pid, "port": state.port, "proxy": state.proxy}
    data["dns"] = asdict(state.dns)
    _write(LabFiles(state.plan.name).state, json.dumps(data, indent=2) + "\n")


def read_state(lab: str) -> LabState:
    """Read lab.json. Raises BadInputError if the lab does not exist, CannotRunError if the file is not valid."""
    names.check_lab_name(lab)
    file = LabFiles(lab).state
    try:
        data = json.loads(file.read_text())
        agents = settings.from_json(data["agents"])
        plan = layout.from_json(data)
        dns = Dns(**data["dns"])
        return LabState(plan, data["nodeCidrMaskSize"], agents, data["pid"], data["port"], data["proxy"], dns)
    except FileNotFoundError as error:
        raise BadInputError(
            f"lab {lab}: there is no such lab", "nodenet lab up starts one, nodenet lab list shows them"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotRunError(f"{file}: not a lab's state: {error}", f"nodenet lab down --name {lab}") from error


def running(lab: str) -> LabState:
    """The state of a lab. Raises BadInputError if it does not exist, CannotRunError if its daemon does not run."""
    state = read_state(lab)
    if not state.alive:
        raise CannotRunError(
            f"lab {lab}: its daemon does not run any more (see {LabFiles(lab).log})", f"nodenet lab down --name {lab}"
        )
    return state


def write_all(state: LabState, port: int, tokens: Tokens) -> None:
    """Write the files for the agents, the plugins and kubectl. Files that contain a token are readable only by root."""
    plan = state.plan
    files = LabFiles(plan.name)
    own = kubeconfig(plan.name, f"http://127.0.0.1:{port}", tokens.admin)
    _write(files.kubeconfig, yaml.safe_dump(own), 0o600)
    of_dns = kubeconfig(plan.name, cluster_dns.api_url(plan), tokens.dns)
    _write(files.dns_kubeconfig, yaml.safe_dump(of_dns), 0o600)
    server = f"http://{layout.url_host(plan.api_addresses[0])}:{layout.API_PORT}"
    for node in plan.nodes:
        folder = files.node(node.name)
        (folder / "cni" / "ipam").mkdir(parents=True, exist_ok=True)
        of_agent = kubeconfig(plan.name, server, tokens.agents[node.name])
        _write(folder / "kubeconfig", yaml.safe_dump(of_agent), 0o600)
        write_agent_config(state, node)
        _write(files.conflist(node.name), json.dumps(conflist(plan, node), indent=2) + "\n")


def write_agent_config(state: LabState, node: NodePlan) -> None:
    path = LabFiles(state.plan.name).node(node.name) / "agent.yaml"
    _write(path, yaml.safe_dump(agent_config(state, node), sort_keys=False))


def agent_config(state: LabState, node: NodePlan) -> dict[str, Any]:
    """The content of agent.yaml (nodenet.config.Config). All nodes use the same metrics port, because each has its own
    network namespace."""
    plan = state.plan
    folder = names.node_dir(plan.name, node.name)
    own: dict[str, Any] = {
        "node_name": node.name,
        "kubeconfig": str(folder / "kubeconfig"),
        "run_dir": str(folder),
        "bpffs": str(folder / "bpf"),
        "cgroup": str(groups.node_root(plan.name, node.name)),
    }
    if state.proxy != proxies.EBPF:
        own["services"] = False
    # All nodes of a lab share one machine's memory: they have the same sizes of maps everywhere.
    return {"cluster_name": plan.name, "map_memory": 0.0, **state.agents.of(node.name), **own}


def ipam_dir(lab: str, node: str) -> Path:
    """The leases of a node's pods, in host-local's format."""
    return names.node_dir(lab, node) / "cni" / "ipam"


def conflist(plan: LabPlan, node: NodePlan) -> dict[str, Any]:
    """The node's CNI network configuration list."""
    folder = names.node_dir(plan.name, node.name)
    ipam = {
        "type": "host-local",
        "dataDir": str(ipam_dir(plan.name, node.name)),
        "ranges": [[{"subnet": str(network)}] for network in node.pod_cidrs],
    }
    plugin = {
        "type": "nodenet",
        "isDefaultGateway": True,
        # With kube-proxy's rules a pod's packet to its own Service comes back to the port on which it arrived.
        "hairpinMode": True,
        "agentSocket": str(folder / "cni.sock"),
        # A pod must not run before its policy is in force. Without the agent, ADD fails with CNI code 11 (try again
        # later) and the kubelet repeats it.
        "requireAgent": True,
        "ipam": ipam,
    }
    return {"cniVersion": _CNI_VERSION, "name": NETWORK, "plugins": [plugin]}


def kubeconfig(lab: str, server: str, token: str) -> dict[str, Any]:
    """A kubeconfig with a bearer token, which the API requires from clients in the fabric. On 127.0.0.1 the API accepts
    the owner of the socket instead (guard.py)."""
    name = f"nodenet-{lab}"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically. A reader never sees an incomplete file, nor one with wider permissions than `mode`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    new.replace(path)
