"""Evaluates one packet directly from the policies, without compiled entries. The matrix and explanations use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from netpolicy.cluster import Cluster
from netpolicy.match import Matcher
from netpolicy.party import Party, Question, Traffic
from netpolicy.pipeline import Answer, NetworkPolicies, Step, TierEvaluator
from netpolicy.selectors import Namespaces
from netpolicy.types import Direction, LabelSet, NetworkPolicy, PolicyRef, RuleRef


class Reason(StrEnum):
    """The reason of a direction's verdict."""

    RULE = "rule"
    NO_RULE = "no-rule"
    NOT_ISOLATED = "not-isolated"
    NOT_A_POD = "not-a-pod"
    OWN_NODE = "own-node"
    ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """The verdict for one end. `steps`: the tiers that were asked, with their answers; the last one decided, unless all
    leave the decision to the next."""

    direction: Direction
    reason: Reason
    steps: tuple[Step, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason is not Reason.NO_RULE

    @property
    def allowed_by(self) -> tuple[RuleRef, ...]:
        """The rules that allow the connection, in order."""
        return self.steps[-1].rules if self.reason is Reason.RULE else ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A connection is allowed if the source's egress and the destination's ingress allow it."""

    egress: DirectionVerdict
    ingress: DirectionVerdict

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


class Evaluator:
    """Evaluates connections for one set of policies: asks one tier after the other, until one accepts or denies."""

    def __init__(self, policies: Iterable[NetworkPolicy], namespaces: Namespaces) -> None:
        self.matcher = Matcher(namespaces)
        self.network_policies = NetworkPolicies(policies, self.matcher)
        self.tiers: tuple[TierEvaluator, ...] = (self.network_policies,)

    @classmethod
    def of(cls, cluster: Cluster) -> Evaluator:
        return cls(cluster.policies, cluster.namespaces)

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
            return DirectionVerdict(direction, exempt if isolated_by else Reason.NOT_ISOLATED, (), isolated_by)
        question = Question(direction, subject.labels, other, destination.labels, traffic)
        steps: list[Step] = []
        for tier in self.tiers:
            steps.append(tier.ask(question))
            if steps[-1].answer is not Answer.NEXT:
                break
        return DirectionVerdict(direction, _reason(steps[-1]), tuple(steps), isolated_by)

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
            return Reason.NO_RULE
        case Answer.NEXT:
            return Reason.NOT_ISOLATED
