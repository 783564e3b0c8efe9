"""Converts the filter flags of `observe`, which mean the same as in the hubble CLI, into filter messages of
GetFlows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network
from typing import Any, NamedTuple

from nodenet.errors import BadInputError
from nodenet.flow.types import RESERVED_NAMES
from nodenet.flow.words import TCP_FLAGS
from nodenet.rpc.pb.flow import flow_pb2

TYPES = {"capture": 3, "drop": 1, "l7": 129, "policy-verdict": 5, "trace": 4, "trace-sock": 7}
TRACE_POINTS = {
    "to-endpoint": 0, "to-proxy": 1, "to-host": 2, "to-stack": 3, "to-overlay": 4, "from-endpoint": 5,
    "from-proxy": 6, "from-host": 7, "from-stack": 8, "from-overlay": 9, "from-network": 10, "to-network": 11,
}  # fmt: skip
_WORKLOAD_KINDS = ("CronJob", "DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet")
_IP_VERSIONS = {"4": 1, "v4": 1, "ipv4": 1, "6": 2, "v6": 2, "ipv6": 2, "none": 0}
_TRUE_FALSE = {"true": True, "false": False}


class Choice(NamedTuple):
    """One use of a filter flag on the command line: its name without dashes, its value, and whether --not preceded
    it."""

    flag: str
    value: str
    negated: bool = False


class _Draft:
    """Two filters that are built together: a flag for either end sets the source in one and the destination in the
    other."""

    def __init__(self) -> None:
        self.left = flow_pb2.FlowFilter()
        self.right = flow_pb2.FlowFilter()
        self.namespaces: list[str] = []
        self.source_namespaces: list[str] = []
        self.destination_namespaces: list[str] = []

    def finish(self) -> list[Any]:
        """The finished filters; only one if both are equal."""
        for half in (self.left, self.right):
            _qualify(half, "source", self.source_namespaces)
            _qualify(half, "destination", self.destination_namespaces)
        _qualify(self.left, "source", self.namespaces)
        _qualify(self.right, "destination", self.namespaces)
        return [self.left] if self.left == self.right else [self.left, self.right]


def _qualify(half: Any, side: str, namespaces: Sequence[str]) -> None:
    """Add these namespaces to pods and Services without one. Without pods and Services: match any pod of these
    namespaces."""
    if not namespaces:
        return
    pods, services = getattr(half, f"{side}_pod"), getattr(half, f"{side}_service")
    if not pods and not services:
        pods.append("")
    for names in (pods, services):
        found = [
            name if "/" in name else f"{ns}/{name}" for name in names for ns in ([""] if "/" in name else namespaces)
        ]
        del names[:]
        names.extend(found)


Use = Callable[[_Draft, str], None]


class Flag(NamedTuple):
    """One filter flag. `short` is a letter or empty. A flag with `constant` takes no value; with `optional` the value
    may be omitted, and then this one is used."""

    help: str
    use: Use
    short: str = ""
    constant: str = ""
    metavar: str = "VALUE"
    optional: str = ""


def _both(field: str, convert: Callable[[str], Any] = str) -> Use:
    def use(draft: _Draft, text: str) -> None:
        value = convert(text)
        getattr(draft.left, field).append(value)
        getattr(draft.right, field).append(value)

    return use


def _either(what: str, convert: Callable[[str], Any] = str) -> Use:
    def use(draft: _Draft, text: str) -> None:
        value = convert(text)
        getattr(draft.left, f"source_{what}").append(value)
        getattr(draft.right, f"destination_{what}").append(value)

    return use


def _namespace(kind: str) -> Use:
    def use(draft: _Draft, text: str) -> None:
        getattr(draft, kind).append(text)

    return use


def _lookup(names: dict[str, Any], what: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text.lower() not in names:
            raise ValueError(f"expected {what}: {', '.join(names)}")
        return names[text.lower()]

    return convert


def _enum(enum: Any) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if text.upper() not in enum.keys():  # noqa: SIM118  an EnumTypeWrapper is no dict
            raise ValueError(f"expected one of {', '.join(enum.keys())}")
        return int(enum.Value(text.upper()))

    return convert


def _identity(text: str) -> int:
    names = {name: int(number) for number, name in RESERVED_NAMES.items()}
    if text.isdecimal():
        return int(text)
    return int(_lookup(names, "a number or one of")(text.removeprefix("reserved:")))


def _workload(text: str) -> Any:
    kind, slash, name = text.rpartition("/")
    if not slash and text.lower() in {kind.lower() for kind in _WORKLOAD_KINDS}:
        kind, name = text, ""
    known = {kind.lower(): kind for kind in _WORKLOAD_KINDS}
    if kind and kind.lower() not in known:
        raise ValueError(f"expected [KIND/]NAME with KIND one of {', '.join(_WORKLOAD_KINDS)}")
    return flow_pb2.Workload(kind=known.get(kind.lower(), ""), name=name)


def _event_type(text: str) -> Any:
    kind, _, point = text.partition(":")
    number = int(kind) if kind.isdecimal() else _lookup(TYPES, "TYPE[:SUBTYPE] with TYPE one of")(kind)
    wanted = flow_pb2.EventTypeFilter(type=number)
    if point:
        wanted.match_sub_type = True
        wanted.sub_type = int(point) if point.isdecimal() else _lookup(TRACE_POINTS, "a SUBTYPE of trace")(point)
    return wanted


def _tcp_flags(text: str) -> Any:
    known = {name for name, _ in TCP_FLAGS} | {"NS"}
    wanted = flow_pb2.TCPFlags()
    for name in text.upper().split(","):
        if name.strip() not in known:
            raise ValueError(f"expected some of {','.join(name for name, _ in TCP_FLAGS)}")
        setattr(wanted, name.strip(), True)
    return wanted


def _ip(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError("expected an address or a CIDR") from error
    return text


def _port(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 0xFFFF:
        raise ValueError("expected a port 0-65535")
    return text


def _sided(
    what: str, field: str, convert: Callable[[str], Any], help_: str, metavar: str, short: str = ""
) -> dict[str, Flag]:
    return {
        what: Flag(f"Either end: {help_}", _either(field, convert), short, "", metavar),
        f"from-{what}": Flag(f"Source: {help_}", _both(f"source_{field}", convert), metavar=metavar),
        f"to-{what}": Flag(f"Destination: {help_}", _both(f"destination_{field}", convert), metavar=metavar),
    }


FLAGS: dict[str, Flag] = {
    **_sided("pod", "pod", str, "a pod's name or the start of it; no namespace means default.", "[NS/]NAME"),
    "namespace": Flag("Either end: a pod of this namespace.", _namespace("namespaces"), "n", "", "NS"),
    "from-namespace": Flag("Source: a pod of this namespace.", _namespace("source_namespaces"), metavar="NS"),
    "to-namespace": Flag("Destination: a pod of this namespace.", _namespace("destination_namespaces"), metavar="NS"),
    "all-namespaces": Flag("Either end: a pod, of any namespace.", _namespace("namespaces"), "A", "*"),
    **_sided("ip", "ip", _ip, "an address or CIDR.", "IP[/BITS]"),
    **_sided("port", "port", _port, "a port.", "PORT"),
    **_sided("label", "label", str, "a label selector, such as app=web or reserved:world.", "SELECTOR", "l"),
    **_sided("service", "service", str, "a Service's name or the start of it.", "[NS/]NAME"),
    **_sided("workload", "workload", _workload, "a Deployment, StatefulSet, ...", "[KIND/]NAME"),
    **_sided("identity", "identity", _identity, "an identity's number, or host, world, ...", "ID"),
    **_sided("cluster", "cluster_name", str, "a pod of this cluster; the whole name.", "NAME"),
    "verdict": Flag("FORWARDED, DROPPED, TRANSLATED, ...", _both("verdict", _enum(flow_pb2.Verdict))),
    "drop-reason-desc": Flag(
        "POLICY_DENIED, INVALID_SOURCE_IP, ...", _both("drop_reason_desc", _enum(flow_pb2.DropReason)), metavar="REASON"
    ),
    "protocol": Flag("tcp, udp, sctp, icmp, icmpv4, icmpv6, igmp, vrrp.", _both("protocol"), metavar="NAME"),
    "traffic-direction": Flag(
        "ingress or egress.",
        _both("traffic_direction", _lookup({"ingress": 1, "egress": 2}, "one of")),
        metavar="DIRECTION",
    ),
    "type": Flag(f"TYPE[:SUBTYPE]: {', '.join(TYPES)}.", _both("event_type", _event_type), "t", "", "TYPE[:SUBTYPE]"),
    "reply": Flag(
        "Replies (true) or other packets (false).",
        _both("reply", _lookup(_TRUE_FALSE, "one of")),
        metavar="true|false",
        optional="true",
    ),
    "tcp-flags": Flag("All of these set: syn,ack,fin,rst,...", _both("tcp_flags", _tcp_flags), metavar="FLAGS"),
    "node-name": Flag("Flows of this node; * matches any characters.", _both("node_name"), metavar="[CLUSTER/]NODE"),
    "node-label": Flag("Flows of a node with these labels.", _both("node_labels"), metavar="SELECTOR"),
    "ip-version": Flag("v4, v6 or none.", _both("ip_version", _lookup(_IP_VERSIONS, "one of")), metavar="VERSION"),
    "ipv4": Flag("Only IPv4.", _both("ip_version", lambda _text: 1), "4", "v4"),
    "ipv6": Flag("Only IPv6.", _both("ip_version", lambda _text: 2), "6", "v6"),
    "uuid": Flag("The flow with this UUID.", _both("uuid"), metavar="UUID"),
}
_SIDED = ("pod", "namespace", "ip", "port", "label", "service", "workload", "identity", "cluster")
_CONFLICTS = [
    *((what, f"{side}-{what}") for what in _SIDED for side in ("from", "to")),
    *((f"{side}-{what}", "namespace") for what in ("pod", "service") for side in ("from", "to")),
    *((f"{side}-{what}", "all-namespaces") for what in ("pod", "service") for side in ("from", "to")),
]


def build(choices: Iterable[Choice]) -> tuple[list[Any], list[Any]]:
    """(whitelist, blacklist) of flow.FlowFilter. Raises BadInputError naming the flag.

    Different flags must all match; several uses of one flag are alternatives. The same holds for flags after --not:
    flows that match all of these are excluded.
    """
    wanted, unwanted = _Draft(), _Draft()
    used: dict[bool, set[str]] = {False: set(), True: set()}
    for flag, value, negated in choices:
        used[negated].add(flag)
        try:
            # "*" is the constant of --all-namespaces: an empty namespace matches all.
            FLAGS[flag].use(unwanted if negated else wanted, "" if value == "*" else value)
        except ValueError as error:
            raise BadInputError(f"--{flag} {value!r}: {error}") from error
    for flags in used.values():
        for one, other in _CONFLICTS:
            if one in flags and other in flags:
                raise BadInputError(f"--{one} and --{other} cannot be combined")
    return wanted.finish() if used[False] else [], unwanted.finish() if used[True] else []


def split_not(arguments: Sequence[str]) -> list[str]:
    """Replace `--not --from-ip X` by `--not-from-ip X`, because click does not keep the order of different options.

    Raises BadInputError for a --not that does not precede a filter.
    """
    letters = {flag.short: name for name, flag in FLAGS.items() if flag.short}
    found: list[str] = []
    negated = False
    for argument in arguments:
        if argument == "--not":
            if negated:
                raise BadInputError("--not: twice in a row")
            negated = True
        elif negated:
            found.append(_negate(argument, letters))
            negated = False
        else:
            found.append(argument)
    if negated:
        raise BadInputError("--not: nothing follows", "put it before a filter: --not --protocol udp")
    return found


def _negate(argument: str, letters: dict[str, str]) -> str:
    name, equals, value = argument.removeprefix("--").partition("=")
    if argument.startswith("--") and name in FLAGS:
        return f"--not-{name}{equals}{value}"
    letter = argument[1:2]
    if argument.startswith("-") and letter in letters:
        rest = argument[2:]
        return f"--not-{letters[letter]}{'=' if rest else ''}{rest.removeprefix('=')}"
    raise BadInputError(f"--not {argument}: expected a filter after --not", "as in --not --protocol udp")
