"""The agent's configuration: one frozen value, read from YAML and checked once. All errors are reported together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast, get_type_hints

from nodenet import tables
from nodenet.endpoint import IPNetwork
from nodenet.errors import BadInputError
from nodenet.tables.memory import DEFAULT_SHARE

# A container image has the compiled eBPF objects and the CNI executables here, read-only (daemonset/Dockerfile).
PREBUILT = Path(sys.prefix) / "share" / "nodenet"


_MOST_SHARE = 0.5


class Share(float):
    """A part of the node's memory, from 0 to 1."""


_DEFAULT_SHARE = Share(DEFAULT_SHARE)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of the agent. The keys of the YAML file are these names.

    Paths need not exist; the agent creates its folders. Sizes are numbers of map entries.
    """

    node_name: str
    # None: the in-cluster service account.
    kubeconfig: Path | None = None
    # API servers (host:port or URL) in place of the kubeconfig's, or of the `kubernetes` Service that the environment
    # of a pod names. The next one is used when one does not answer. All have the same certificate authority.
    api_servers: tuple[str, ...] = ()
    # The name that the servers' certificates must have. Empty: the host of each address.
    api_server_name: str = ""
    # Sockets (agent.sock, cni.sock) and the endpoints folder.
    run_dir: Path = Path("/run/nodenet")
    # Folder on a bpffs for pinned programs, links and maps.
    bpffs: Path = Path("/sys/fs/bpf/nodenet")
    # cgroup v2 folder that the socket programs attach to. None: the root of the node's hierarchy (link/hierarchy.py).
    cgroup: Path | None = None
    # Cache of compiled eBPF objects. The key is a hash of sources and flags.
    cache_dir: Path = Path("/var/cache/nodenet")
    # host:port for Prometheus metrics; empty: off.
    metrics_address: str = "127.0.0.1:9909"
    # host:port for the kubelet's probes; empty: off.
    health_address: str = "127.0.0.1:9910"
    # host:port for /healthz and /livez with kube-proxy's meaning, which load balancers ask, and /proxyMode; empty: off.
    # kube-proxy's own address is 0.0.0.0:10256.
    proxy_health_address: str = ""
    # host:port for kube-proxy's metrics (kubeproxy_*) and /proxyMode, as on kube-proxy's metrics port; empty: off.
    # kube-proxy's own address is 127.0.0.1:10249. `metrics_address` has them too.
    proxy_metrics_address: str = ""
    # host:port for Hubble's API over TCP; empty: only the unix socket.
    hubble_address: str = ""
    cluster_name: str = "default"
    # Flows kept in memory for `observe --last`.
    flow_buffer: int = 4095
    # Report allowed flows too. Off: only drops, which is slightly faster.
    flow_events: bool = True
    # Enforce NetworkPolicies. Off: all traffic is allowed, and `nodenet status` says so.
    enforce_policy: bool = True
    # The interface that leads to the other nodes. Empty: the one with the node's InternalIP, or of the default route.
    uplink: str = ""
    # Serve Services for traffic from outside: NodePorts, load-balancer addresses, externalIPs, ClusterIPs. The programs
    # are attached to the interfaces that have the node's addresses, or to `uplink`. Only with `services`.
    uplink_programs: bool = True
    # Ports that replace those of clients outside, for backends on other nodes. The node's sockets do not get them
    # (net.ipv4.ip_local_reserved_ports), and masquerading must not use them.
    source_ports: str = "49152-65535"
    # MTU of new pods. 0: the uplink's.
    pod_mtu: int = 0
    # The folder in which the agent writes the conflist when it is ready. None: it writes none.
    cni_conf_dir: Path | None = None
    # That conflist has the reference's portmap plugin too, for hostPort of containers. Off: the agent serves them.
    host_ports: bool = False
    # Packets that pods send out of the cluster leave with the node's address. Excluded are pods, nodes, the networks of
    # `masquerade_exclude`, and those of the ip-masq-agent's configuration if its file exists.
    masquerade_ipv4: bool = False
    masquerade_ipv6: bool = False
    masquerade_exclude: tuple[IPNetwork, ...] = ()
    # Ports for masqueraded connections. The default has no port of NodePorts (30000-32767) and none of `source_ports`.
    masquerade_ports: str = "32768-49151"
    ip_masq_agent_config: Path = Path("/etc/config/ip-masq-agent")
    # Serve Services, in place of kube-proxy. Off: Services are kube-proxy's.
    services: bool = True
    # The node's addresses on which NodePorts are served: `primary` (the first InternalIP of each family), networks in
    # CIDR form, or `all`. Never the loopback.
    node_port_addresses: tuple[str, ...] = ("primary",)
    # Deliver packets between pods of this node with bpf_redirect_peer instead of through the bridge.
    redirect_peer: bool = True
    # Sizes of maps follow this share of the node's memory (nodenet/tables/memory.py): a number, or a percentage such as
    # 2%. They are computed once and then kept. 0: the same sizes on every node.
    map_memory: Share = _DEFAULT_SHARE
    # Sizes of maps, in place of the computed ones. nodenet/tables declares which map uses which key.
    ct_entries: int | None = None
    service_entries: int | None = None
    backend_entries: int | None = None
    endpoint_entries: int | None = None
    ipcache_entries: int | None = None
    policy_entries: int | None = None
    # Start also where a later version kept connections in a form that this one cannot read: they are lost.
    allow_downgrade: bool = False
    # Seconds between full comparisons of the kernel's maps with the desired state.
    resync_seconds: float = 60.0

    @property
    def agent_socket(self) -> Path:
        """gRPC: observer.Observer and nodenet's own service."""
        return self.run_dir / "agent.sock"

    @property
    def masquerade_port_range(self) -> tuple[int, int]:
        """The first and the last port of `masquerade_ports`."""
        return _range(self.masquerade_ports)

    @property
    def source_port_range(self) -> tuple[int, int]:
        """The first and the last port of `source_ports`."""
        return _range(self.source_ports)

    @property
    def serves_uplinks(self) -> bool:
        """Whether Services are served for traffic from outside."""
        return self.services and self.uplink_programs

    @property
    def entries(self) -> dict[str, int]:
        """The sizes of maps that are set, by key."""
        found = {key: getattr(self, key) for key in tables.SIZE_KEYS}
        return {key: number for key, number in found.items() if number is not None}


_ADDRESSES = (
    "metrics_address",
    "health_address",
    "hubble_address",
    "proxy_health_address",
    "proxy_metrics_address",
)
_POSITIVE = ("flow_buffer", "resync_seconds")


def parse(data: Mapping[str, Any], source: str) -> Config:
    """Build a Config from a decoded YAML mapping. Raises BadInputError that lists all invalid keys."""
    hints = get_type_hints(Config)
    known = {f.name: f for f in fields(Config)}
    errors = [f"{key}: unknown key (known: {', '.join(known)})" for key in data if key not in known]
    values: dict[str, Any] = {}
    for name, spec in known.items():
        if name not in data:
            if spec.default is MISSING:
                errors.append(f"{name}: required" + (" (or NODENET_NODE_NAME)" if name == "node_name" else ""))
            continue
        try:
            values[name] = _convert(data[name], hints[name])
        except ValueError as error:
            errors.append(f"{name}: {error}")
    errors += [f"{name}: expected more than 0, got {values[name]}" for name in _POSITIVE if values.get(name, 1) <= 0]
    least = {name: tables.least_entries(name) for name in tables.SIZE_KEYS if values.get(name) is not None}
    errors += [
        f"{name}: expected at least {number}, got {values[name]}"
        for name, number in least.items()
        if values[name] < number
    ]
    errors += [
        f"{name}: expected FIRST-LAST within 1024-65535, got {values[name]!r}"
        for name in ("masquerade_ports", "source_ports")
        if name in values and not _is_port_range(values[name])
    ]
    errors += [
        f"node_port_addresses: expected primary, all, or a network such as 10.0.0.0/8, got {word!r}"
        for word in values.get("node_port_addresses", ())
        if word not in ("primary", "all") and not _is_network(word)
    ]
    if "pod_mtu" in values and not (values["pod_mtu"] == 0 or 1280 <= values["pod_mtu"] <= 65535):
        # Less than 1280 is no MTU for IPv6 (RFC 8200, section 5).
        errors.append(f"pod_mtu: expected 1280-65535, or 0 for the uplink's MTU, got {values['pod_mtu']}")
    errors += [
        f"{name}: expected host:port, got {values[name]!r}"
        for name in _ADDRESSES
        if values.get(name) and not values[name].rpartition(":")[2].isdigit()
    ]
    errors += _equal_addresses(values)
    if not errors:
        config = Config(**values)
        if not (errors := _shared_ports(config)):
            return config
    raise BadInputError(f"{source}: " + "; ".join(errors), "see docs/operations.md for every key")


def _shared_ports(config: Config) -> list[str]:
    """A masqueraded connection and one from outside must not meet at one port of the node."""
    one, other = config.masquerade_port_range, config.source_port_range
    if not config.serves_uplinks or not (config.masquerade_ipv4 or config.masquerade_ipv6):
        return []
    if one[1] < other[0] or other[1] < one[0]:
        return []
    return [f"source_ports: expected no port of masquerade_ports ({config.masquerade_ports}): {config.source_ports}"]


def _equal_addresses(values: Mapping[str, Any]) -> list[str]:
    """kube-proxy's /healthz and /metrics and ours mean different things, so they cannot have the same address. Metrics
    and probes can: one listener serves both."""
    others = {
        "proxy_health_address": ("health_address", "metrics_address"),
        "proxy_metrics_address": ("health_address", "metrics_address", "proxy_health_address"),
    }
    return [
        f"{key}: expected another address than {name}, both are {ours}"
        for key, names in others.items()
        for name in names
        if (ours := values.get(key)) and ours == values.get(name, getattr(Config(""), name))
    ]


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high)


def _is_port_range(text: str) -> bool:
    low, dash, high = text.partition("-")
    return bool(dash) and low.isdecimal() and high.isdecimal() and 1024 <= int(low) < int(high) <= 65535


def is_text(key: str) -> bool:
    """Whether a key's value is a string or a path. False for an unknown key."""
    return get_type_hints(Config).get(key) in (str, Path, Path | None)


def _convert(value: object, wanted: Any) -> object:
    optional = wanted == (Path | None)
    if wanted == (int | None):
        return None if value is None else _convert(value, int)
    if optional and value is None:
        return None
    if wanted is Share:
        return _share(value)
    if optional or wanted is Path:
        if not isinstance(value, str) or not value:
            raise ValueError(f"expected a path, got {value!r}")
        return Path(value)
    # YAML reads 60 as an int. bool is a subclass of int, but `true` is not a number.
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted == tuple[IPNetwork, ...]:
        return tuple(_network(text) for text in cast(tuple[str, ...], _convert(value, tuple[str, ...])))
    if wanted == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f"expected a list of texts, got {value!r}")
        return tuple(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"expected {wanted.__name__}, got {value!r}")
    return value


def _share(value: object) -> Share:
    """A number from 0 to 0.5, or a percentage up to 50%."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= _MOST_SHARE:
        raise ValueError(f"expected a share of the node's memory such as 0.02 or 2%, at most 50%, got {value!r}")
    return Share(share)


def _network(text: str) -> IPNetwork:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"expected networks such as 10.0.0.0/8, got {text!r}") from None
