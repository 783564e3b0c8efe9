"""The lab's DNS: its objects, the program in its pods, and the resolver's files of all pods. Pure.

The objects have the names and labels of CoreDNS as kubeadm installs it, so that a user's own manifest replaces them.
The program is nodenet.dns, in every pod of kube-system with the label k8s-app: kube-dns, whatever its image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet.errors import BadInputError
from nodenet.lab import layout, pods
from nodenet.lab.layout import LabPlan

Object = Mapping[str, Any]

NAMESPACE = "kube-system"
SERVICE = "kube-dns"
LABELS = {"k8s-app": "kube-dns"}
DOMAIN = "cluster.local"
# Clusters give DNS the tenth address of the Service range.
_TENTH = 10
_REPLICAS = 2
# The kinds that the server reads.
KINDS = ("Service", "EndpointSlice", "Namespace")
# Limits of the resolver that the kubelet checks too.
_MOST_SERVERS = 3
_MOST_SEARCHES = 32


def addresses(plan: LabPlan) -> list[str]:
    """The addresses of the Service, one for each family."""
    return [str(network[_TENTH]) for network in plan.service_cidrs]


def objects(plan: LabPlan) -> list[dict[str, Any]]:
    """The Deployment and the Service."""
    metadata = {"namespace": NAMESPACE, "labels": LABELS}
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    container = {
        "name": "coredns",
        "image": "coredns",
        "ports": [{"name": port["name"], "containerPort": 53, "protocol": port["protocol"]} for port in ports],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "name": "coredns"},
        "spec": {
            "replicas": _REPLICAS,
            "selector": {"matchLabels": LABELS},
            # Default: a DNS server that asked itself for names outside of the cluster would ask for ever.
            "template": {"metadata": {"labels": LABELS}, "spec": {"dnsPolicy": "Default", "containers": [container]}},
        },
    }
    found = addresses(plan)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "name": SERVICE},
        "spec": {
            "clusterIP": found[0],
            "clusterIPs": found,
            "ipFamilyPolicy": "RequireDualStack" if len(found) > 1 else "SingleStack",
            "selector": LABELS,
            "ports": ports,
        },
    }
    return [deployment, service]


def serves(pod: Object) -> bool:
    """Whether the pod's program is the DNS server."""
    labels = pod["metadata"].get("labels") or {}
    return pod["metadata"]["namespace"] == NAMESPACE and labels.items() >= LABELS.items()


def api_url(plan: LabPlan) -> str:
    """The API as pods reach it: by the Service default/kubernetes."""
    return f"http://{layout.url_host(plan.service_cidrs[0][1])}:443"


def program(kubeconfig: Path, upstream: str) -> list[str]:
    """The command of the server, without the options of one pod."""
    found = [sys.executable, "-m", "nodenet.dns", "--kubeconfig", str(kubeconfig)]
    return [*found, "--upstream", upstream] if upstream else found


def check_upstream(text: str, plan: LabPlan) -> str:
    """Raises BadInputError unless it is an IP address, and not that of the lab's own DNS."""
    try:
        found = str(ip_address(text)) if text else ""
    except ValueError as error:
        raise BadInputError(
            f"--dns-upstream: expected an IP address, got {text!r}", "the address of a DNS server that pods can reach"
        ) from error
    if found in addresses(plan):
        raise BadInputError(f"--dns-upstream: {found} is the lab's own DNS, which would ask itself")
    return found


def servers(services: Iterable[Object]) -> list[str]:
    """The addresses of the cluster's DNS: those of the Service kube-dns. [] if there is none: pods then know names from
    /etc/hosts."""
    for service in services:
        metadata = service["metadata"]
        if (metadata["namespace"], metadata["name"]) == (NAMESPACE, SERVICE):
            return pods.cluster_ips(service)
    return []


def resolv_conf(pod: Object, cluster: Sequence[str], node: str) -> str:
    """The pod's resolv.conf, as its dnsPolicy and dnsConfig say. `cluster`: the cluster's servers, `node`: the text of
    the node's own file.

    Unlike a kubelet this does not add the node's search domains to the cluster's: they are those of this machine.
    """
    spec = pod["spec"]
    policy = spec.get("dnsPolicy", "ClusterFirst")
    if policy == "ClusterFirst" and pods.host_network(pod):
        policy = "Default"
    config = spec.get("dnsConfig") or {}
    if policy == "Default" and not config:
        return node
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet"):
        tree = f"svc.{DOMAIN}"
        searches = [f"{pod['metadata']['namespace']}.{tree}", tree, DOMAIN]
        found = {"nameserver": [*cluster], "search": searches, "options": ["ndots:5"]}
    elif policy == "Default":
        found = _parse(node)
    found["nameserver"] = _merged(found["nameserver"], config.get("nameservers"))[:_MOST_SERVERS]
    found["search"] = _merged(found["search"], config.get("searches"))[:_MOST_SEARCHES]
    found["options"] = _options(found["options"], config.get("options"))
    return _text(found)


def _parse(text: str) -> dict[str, list[str]]:
    """The lines of a resolv.conf that matter here. The last `search` counts (resolv.conf(5))."""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        key, *words = line.split() or [""]
        if key == "nameserver":
            found[key] += words[:1]
        elif key == "search":
            found[key] = words
        elif key == "options":
            found[key] += words
    return found


def _merged(first: Sequence[str], more: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys([*first, *(more or ())]))


def _options(first: Sequence[str], more: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Options by name: those of dnsConfig replace those of the policy."""
    found = {option.partition(":")[0]: option for option in first}
    for entry in more or ():
        value = entry.get("value")
        found[entry["name"]] = entry["name"] if value is None else f"{entry['name']}:{value}"
    return list(found.values())


def _text(found: Mapping[str, Sequence[str]]) -> str:
    lines = [f"nameserver {server}" for server in found["nameserver"]]
    lines += [f"{key} {' '.join(found[key])}" for key in ("search", "options") if found[key]]
    return "\n".join(lines) + "\n"


def name_services(node: str) -> str:
    """The pod's nsswitch.conf: host names come from /etc/hosts and DNS only. Services of this machine, such as
    systemd-resolved, would answer from outside of the pod's network."""
    kept = [line for line in node.splitlines() if not line.strip().startswith("hosts:")]
    return "\n".join([*kept, "hosts: files dns"]) + "\n"


def hosts_file(pod: Object) -> str:
    """The pod's /etc/hosts where DNS knows the Services: as the kubelet writes it, with hostAliases."""
    metadata, spec = pod["metadata"], pod["spec"]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    host = spec.get("hostname") or metadata["name"]
    full = f"{host}.{spec['subdomain']}.{metadata['namespace']}.svc.{DOMAIN}" if spec.get("subdomain") else ""
    lines += [" ".join(filter(None, (address, full, host))) for address in pods.addresses(pod)]
    for alias in spec.get("hostAliases") or ():
        lines.append(" ".join([str(alias["ip"]), *map(str, alias.get("hostnames") or ())]))
    return "\n".join(lines) + "\n"
