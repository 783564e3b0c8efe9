"""The content of a NetworkPolicy as frozen, hashable values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import ClassVar, NamedTuple

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# The API server sets this label on every namespace (KEP-2161).
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


class PolicyError(ValueError):
    """An object that the API server would reject. The text names the object, the field and the expected value."""

    def __init__(self, subject: str, path: str, message: str) -> None:
        super().__init__(f"{subject}: {path}: {message}" if path else f"{subject}: {message}")
        self.object = subject
        self.field = path
        self.message = message


class UnreadableError(PolicyError):
    """A value that API servers accept, because the schema of the kind does not check it, and that has no meaning."""


class UnknownFieldError(PolicyError):
    """A field that this version of the engine does not know: a mistake in a manifest, or a field of a newer API."""


class Direction(StrEnum):
    """Traffic direction as the selected pod sees it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Tier(StrEnum):
    """The groups of policies, in the order in which they are asked."""

    ADMIN = "Admin"
    NETWORK_POLICY = "NetworkPolicy"
    BASELINE = "Baseline"


class Action(StrEnum):
    """What a rule does with the traffic that it matches. Rules of a NetworkPolicy accept. Pass leaves the tier."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


class Protocol(StrEnum):
    """The protocols that a NetworkPolicy port can name."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Operator(StrEnum):
    """The operators of a label selector's matchExpressions."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of matchExpressions; a pair of matchLabels is `In` with one value."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.operator is Operator.EXISTS:
            return self.key
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{self.key}"
        if self.operator is Operator.IN and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        word = "in" if self.operator is Operator.IN else "notin"
        return f"{self.key} {word} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector: all requirements must be met, so an empty one matches everything."""

    requirements: tuple[Requirement, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(r.key for r in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements)) or "{}"


@dataclass(frozen=True, slots=True)
class IPBlock:
    """The addresses of `cidr` without those of `excepts`. It matches pods' addresses too."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPv4Address | IPv6Address) or address not in self.cidr:
            return False
        return not any(address in hole for hole in self.excepts)

    def __str__(self) -> str:
        return f"{self.cidr} except {', '.join(map(str, self.excepts))}" if self.excepts else str(self.cidr)


@dataclass(frozen=True, slots=True)
class Peer:
    """One entry of from/to. `pods` without `namespaces` selects in the policy's own namespace; with both, both must
    match. `nodes` selects the addresses of nodes by the labels of the nodes.

    A peer with no field set (one that could not be read) matches nothing.
    """

    pods: Selector | None = None
    namespaces: Selector | None = None
    block: IPBlock | None = None
    nodes: Selector | None = None

    def __str__(self) -> str:
        if self.block is not None:
            return f"ipBlock {self.block}"
        if self.nodes is not None:
            return f"nodes {self.nodes}"
        parts = []
        if self.pods is not None:
            parts.append(f"pods {self.pods}")
        if self.namespaces is not None:
            parts.append(f"namespaces {self.namespaces}")
        return " in ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True)
class PortRule:
    """One entry of ports. `port` None: every port of the protocol; a text: a named port of the destination pod."""

    protocol: Protocol = Protocol.TCP
    port: int | str | None = None
    end_port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return f"every {self.protocol} port"
        last = f"-{self.end_port}" if self.end_port is not None else ""
        return f"{self.port}{last}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of ingress/egress. No peers: all addresses, inside and outside the cluster. No ports: all protocols
    and ports. `name`: what the author calls it."""

    peers: tuple[Peer, ...] = ()
    ports: tuple[PortRule, ...] = ()
    action: Action = Action.ACCEPT
    name: str = ""

    def closed(self) -> Rule:
        """What is in force of a rule of a ClusterNetworkPolicy of which a part cannot be in force: an Accept matches
        nothing, and a Deny or Pass denies everything."""
        if self.action is Action.ACCEPT:
            return Rule((Peer(),), (), self.action, self.name)
        return Rule((), (), Action.DENY, self.name)


# Replaces a rule that could not be read: its peer matches nothing.
NOTHING = Rule((Peer(),))


class Problem(NamedTuple):
    """A part of an object that could not be read. `effect` is a clause that says what the engine does instead."""

    field: str
    message: str
    effect: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}: {self.effect}"

    def concerns(self, direction: Direction, index: int) -> bool:
        """True if a rule allows less because of this problem. The problem is in the rule, or affects all rules of the
        direction (spec.ingress or spec.egress) or of the policy."""
        _, _, path = self.field.partition(".")
        section, _, rest = path.replace("[", ".", 1).partition(".")
        if section not in tuple(Direction):
            return section != "policyTypes"
        return section == direction and (not rest or rest.partition("]")[0] == str(index))


class PolicyRef(NamedTuple):
    """The name of a policy. A ClusterNetworkPolicy has no namespace: ""."""

    namespace: str
    name: str

    @property
    def kind(self) -> str:
        return "NetworkPolicy" if self.namespace else "ClusterNetworkPolicy"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class RuleRef:
    """One rule of a policy: `index` is its position in spec.ingress or spec.egress, from 0. The namespace of a
    ClusterNetworkPolicy is ""."""

    namespace: str
    policy: str
    direction: Direction
    index: int

    @property
    def owner(self) -> PolicyRef:
        return PolicyRef(self.namespace, self.policy)

    def __str__(self) -> str:
        return f"{self.owner} {self.direction}[{self.index}]"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One NetworkPolicy. `directions` are its policyTypes with defaults; rules of other directions have no effect.

    `problems`: parts that could not be read. They isolate, and allow nothing.
    """

    namespace: str
    name: str
    selector: Selector
    directions: frozenset[Direction]
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def ref(self) -> PolicyRef:
        return PolicyRef(self.namespace, self.name)

    def closed(self) -> NetworkPolicy:
        """It isolates, and allows nothing."""
        return replace(self, ingress=(), egress=())

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """The effective rules of `direction`; empty if the policy does not isolate it."""
        if direction not in self.directions:
            return ()
        return self.ingress if direction is Direction.INGRESS else self.egress

    def rule_ref(self, direction: Direction, index: int) -> RuleRef:
        return RuleRef(self.namespace, self.name, direction, index)

    def problems_of(self, direction: Direction, index: int) -> tuple[Problem, ...]:
        """The problems because of which one rule allows less than its author wrote (Problem.concerns)."""
        return tuple(problem for problem in self.problems if problem.concerns(direction, index))


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """One ClusterNetworkPolicy, of the Admin or the Baseline tier. `subject` selects pods by namespaces and labels.

    `problems`: parts that could not be read. Rules with them accept nothing, or deny everything.
    `generation` and `uid` of the object that was read, for its status: two versions of an object differ also if they
    mean the same here. 0 and "" for a manifest.
    """

    name: str
    tier: Tier
    priority: int
    subject: Peer
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()
    generation: int = 0
    uid: str = ""

    # A cluster-wide policy has no namespace of its own.
    namespace: ClassVar[str] = ""

    @property
    def ref(self) -> PolicyRef:
        return PolicyRef("", self.name)

    @property
    def strength(self) -> tuple[int, str]:
        """Sorts the policies of one tier, the strongest first. The API leaves the order of equal priorities open."""
        return self.priority, self.name

    def closed(self) -> ClusterPolicy:
        """It accepts nothing, and denies everything if it denies or passes anything."""
        ingress, egress = (tuple(rule.closed() for rule in rules) for rules in (self.ingress, self.egress))
        return replace(self, ingress=ingress, egress=egress)

    @property
    def directions(self) -> frozenset[Direction]:
        return frozenset(direction for direction in Direction if self.rules(direction))

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """The rules of `direction`, the strongest first."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    def rule_ref(self, direction: Direction, index: int) -> RuleRef:
        return RuleRef("", self.name, direction, index)

    def problems_of(self, direction: Direction, index: int) -> tuple[Problem, ...]:
        """The problems because of which one rule does something else than its author wrote (Problem.concerns)."""
        return tuple(problem for problem in self.problems if problem.concerns(direction, index))


Policy = NetworkPolicy | ClusterPolicy


class NamedPort(NamedTuple):
    """A containerPort with a name."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class LabelSet:
    """All attributes of a pod that a policy can select by, except its address: pods with equal label sets share an
    identity.

    Create it with `LabelSet.of`, which sorts labels and ports.
    """

    namespace: str
    labels: tuple[tuple[str, str], ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    # The same labels as a dict, derived from `labels`.
    mapping: Mapping[str, str] = field(init=False, repr=False, compare=False)
    # A label set is looked up for each pod that has it, so its hash is computed once.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mapping", dict(self.labels))
        object.__setattr__(self, "_hash", hash((self.namespace, self.labels, self.named_ports)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, namespace: str, labels: Mapping[str, str], named_ports: Iterable[NamedPort] = ()) -> LabelSet:
        return cls(namespace, tuple(sorted(labels.items())), tuple(sorted(set(named_ports))))

    def ports_named(self, name: str, protocol: Protocol) -> tuple[int, ...]:
        """The numbers of this pod's ports with that name and protocol; empty if there are none."""
        return tuple(p.port for p in self.named_ports if p.name == name and p.protocol is protocol)


def namespace_labels(namespaces: Mapping[str, Mapping[str, str]], name: str) -> dict[str, str]:
    """The labels of a namespace, including the name label that the API server always adds; also for an unknown
    namespace."""
    return {NAMESPACE_NAME_LABEL: name, **namespaces.get(name, {})}
