"""Evaluates one packet directly from the policies, without compiled entries. The matrix and explanations use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from netpolicy.cluster import Cluster
from netpolicy.match import Matcher
from netpolicy.nodes import HasAddresses
from netpolicy.party import Party, Question, Traffic
from netpolicy.pipeline import Answer, ClusterPolicies, NetworkPolicies, Step, TierEvaluator
from netpolicy.selectors import Namespaces
from netpolicy.types import ClusterPolicy, Direction, LabelSet, NetworkPolicy, Policy, PolicyRef, RuleRef, Tier


class Reason(StrEnum):
    """The reason of a direction's verdict."""

    RULE = "rule"
    NO_RULE = "no-rule"
    DENY_RULE = "deny-rule"
    NOT_ISOLATED = "not-isolated"
    NOT_A_POD = "not-a-pod"
    OWN_NODE = "own-node"
    ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """The verdict for one end. `steps`: the tiers that were asked, with their answers; the last one decided, unless all
    leave the decision to the next. `isolated_by`: the NetworkPolicies that isolate the pod."""

    direction: Direction
    reason: Reason
    steps: tuple[Step, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason not in (Reason.NO_RULE, Reason.DENY_RULE)

    @property
    def allowed_by(self) -> tuple[RuleRef, ...]:
        """The rules that allow the connection, in order."""
        return self.steps[-1].rules if self.reason is Reason.RULE else ()

    @property
    def denied_by(self) -> tuple[RuleRef, ...]:
        """The rule that denies the connection. Without one, no rule of a NetworkPolicy allows it."""
        return self.steps[-1].rules if self.reason is Reason.DENY_RULE else ()

    @property
    def passed_by(self) -> tuple[RuleRef, ...]:
        """The rules that left the decision to a later tier."""
        return tuple(rule for step in self.steps if step.answer is Answer.NEXT for rule in step.rules)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A connection is allowed if the source's egress and the destination's ingress allow it."""

    egress: DirectionVerdict
    ingress: DirectionVerdict

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


class Evaluator:
    """Evaluates connections for one set of policies: asks one tier after the other, until one accepts or denies. If
    none does, the connection is allowed."""

    def __init__(self, policies: Iterable[Policy], namespaces: Namespaces, nodes: Iterable[HasAddresses] = ()) -> None:
        self.matcher = Matcher(namespaces, nodes)
        given = tuple(policies)
        self._by_ref = {policy.ref: policy for policy in given}
        of_cluster = [policy for policy in given if isinstance(policy, ClusterPolicy)]
        self.network_policies = NetworkPolicies((p for p in given if isinstance(p, NetworkPolicy)), self.matcher)
        self.admin = ClusterPolicies(Tier.ADMIN, of_cluster, self.matcher)
        self.baseline = ClusterPolicies(Tier.BASELINE, of_cluster, self.matcher)
        self.tiers: tuple[TierEvaluator, ...] = (self.admin, self.network_policies, self.baseline)

    @classmethod
    def of(cls, cluster: Cluster) -> Evaluator:
        return cls(cluster.every_policy, cluster.namespaces, cluster.nodes)

    def verdict(self, source: Party, destination: Party, traffic: Traffic) -> Verdict:
        """The verdict for a new connection from `source` to `destination`."""
        return Verdict(
            self._direction(Direction.EGRESS, source, destination, destination, traffic),
            self._direction(Direction.INGRESS, destination, source, destination, traffic),
        )

    def _direction(
        self, direction: Direction, subject: Party, other: Party, destination: Party, traffic: Traffic
    ) -> DirectionVerdict:
        if subject.labels is None:
            return DirectionVerdict(direction, Reason.NOT_A_POD)
        isolated_by = tuple(p.ref for p in self.network_policies.isolating(subject.labels, direction))
        exempt = _exemption(subject, other)
        if exempt is not None:
            # Without any policy the reason is that there is none.
            is_asked = any(tier.concerns(subject.labels, direction) for tier in self.tiers)
            return DirectionVerdict(direction, exempt if is_asked else Reason.NOT_ISOLATED, (), isolated_by)
        question = Question(direction, subject.labels, other, destination.labels, traffic)
        steps: list[Step] = []
        for tier in self.tiers:
            steps.append(tier.ask(question))
            if steps[-1].answer is not Answer.NEXT:
                break
        return DirectionVerdict(direction, _reason(steps[-1]), tuple(steps), isolated_by)

    def policy(self, ref: PolicyRef) -> Policy | None:
        """The policy of this name."""
        return self._by_ref.get(ref)

    def isolating(self, subject: LabelSet, direction: Direction) -> tuple[NetworkPolicy, ...]:
        """The NetworkPolicies that isolate pods with these labels, sorted by name."""
        return self.network_policies.isolating(subject, direction)


def _exemption(subject: Party, other: Party) -> Reason | None:
    """Traffic that no policy is asked about."""
    if subject == other:
        return Reason.ITSELF
    if other.host and other.node and other.node == subject.node:
        return Reason.OWN_NODE
    return None


def _reason(last: Step) -> Reason:
    match last.answer:
        case Answer.ACCEPT:
            return Reason.RULE
        case Answer.DENY:
            return Reason.DENY_RULE if last.rules else Reason.NO_RULE
        case Answer.NEXT:
            return Reason.NOT_ISOLATED
