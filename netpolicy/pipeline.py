"""The tiers of policy, each with an evaluator that accepts, denies, or leaves the decision to the next tier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol as Interface

from netpolicy.match import Matcher, ports_match
from netpolicy.party import Party, Question
from netpolicy.selectors import matches, peer_selects
from netpolicy.types import Action, ClusterPolicy, Direction, LabelSet, NetworkPolicy, PolicyRef, Rule, RuleRef, Tier


class Answer(StrEnum):
    """The answer of one tier."""

    ACCEPT = "accept"
    DENY = "deny"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class Step:
    """What one tier says about one direction of a connection. `rules`: those that decide, in order; a Deny of the
    NetworkPolicy tier has none, and a rule with the answer NEXT passes. `isolated_by`: the NetworkPolicies that isolate
    the pod."""

    tier: Tier
    answer: Answer
    rules: tuple[RuleRef, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()


class TierEvaluator(Interface):
    """One tier."""

    @property
    def tier(self) -> Tier: ...

    def concerns(self, subject: LabelSet, direction: Direction) -> bool:
        """True if a policy of the tier has a say about pods with these labels."""
        ...

    def ask(self, question: Question) -> Step: ...


class NetworkPolicies:
    """The tier of networking.k8s.io NetworkPolicies: additive allow lists, without an order among them. A pod that one
    of them isolates gets its answer here; a pod that none isolates goes on."""

    tier = Tier.NETWORK_POLICY

    def __init__(self, policies: Iterable[NetworkPolicy], matcher: Matcher) -> None:
        self._matcher = matcher
        self._by_namespace: dict[str, list[NetworkPolicy]] = {}
        for policy in sorted(policies, key=lambda p: p.ref):
            self._by_namespace.setdefault(policy.namespace, []).append(policy)
        self._isolating: dict[tuple[LabelSet, Direction], tuple[NetworkPolicy, ...]] = {}
        self._open: dict[tuple[LabelSet, Direction, Party], list[tuple[RuleRef, Rule]]] = {}

    def concerns(self, subject: LabelSet, direction: Direction) -> bool:
        return bool(self.isolating(subject, direction))

    def ask(self, question: Question) -> Step:
        policies = self.isolating(question.subject, question.direction)
        if not policies:
            return Step(self.tier, Answer.NEXT)
        rules = tuple(
            ref
            for ref, rule in self._rules_for(question, policies)
            if ports_match(rule.ports, question.traffic, question.destination)
        )
        names = tuple(policy.ref for policy in policies)
        return Step(self.tier, Answer.ACCEPT if rules else Answer.DENY, rules, names)

    def isolating(self, subject: LabelSet, direction: Direction) -> tuple[NetworkPolicy, ...]:
        """The policies that isolate pods with these labels, sorted by name."""
        key = (subject, direction)
        if key not in self._isolating:
            self._isolating[key] = tuple(
                policy
                for policy in self._by_namespace.get(subject.namespace, ())
                if direction in policy.directions and matches(policy.selector, subject.mapping)
            )
        return self._isolating[key]

    def _rules_for(self, question: Question, policies: tuple[NetworkPolicy, ...]) -> list[tuple[RuleRef, Rule]]:
        """The rules whose peers match the other end, for any port."""
        key = (question.subject, question.direction, question.other)
        if key not in self._open:
            self._open[key] = [
                (policy.rule_ref(question.direction, index), rule)
                for policy in policies
                for index, rule in enumerate(policy.rules(question.direction))
                if self._matcher.rule_is_about(policy.namespace, rule, question.other)
            ]
        return self._open[key]


_ANSWERS = {Action.ACCEPT: Answer.ACCEPT, Action.DENY: Answer.DENY, Action.PASS: Answer.NEXT}


class ClusterPolicies:
    """A tier of ClusterNetworkPolicies. The first rule that matches decides, in the order of the policies' strength and
    of their rules. Selecting a pod changes nothing by itself."""

    def __init__(self, tier: Tier, policies: Iterable[ClusterPolicy], matcher: Matcher) -> None:
        self.tier = tier
        self._matcher = matcher
        self._policies = sorted((p for p in policies if p.tier is tier), key=lambda policy: policy.strength)
        self._selecting: dict[tuple[LabelSet, Direction], tuple[ClusterPolicy, ...]] = {}
        self._about: dict[tuple[LabelSet, Direction, Party], list[tuple[RuleRef, Rule]]] = {}

    def concerns(self, subject: LabelSet, direction: Direction) -> bool:
        return bool(self.selecting(subject, direction))

    def ask(self, question: Question) -> Step:
        for ref, rule in self._rules_for(question):
            if ports_match(rule.ports, question.traffic, question.destination):
                return Step(self.tier, _ANSWERS[rule.action], (ref,))
        return Step(self.tier, Answer.NEXT)

    def selecting(self, subject: LabelSet, direction: Direction) -> tuple[ClusterPolicy, ...]:
        """The policies with rules of this direction that select pods with these labels, the strongest first."""
        key = (subject, direction)
        if key not in self._selecting:
            self._selecting[key] = tuple(
                policy
                for policy in self._policies
                if policy.rules(direction) and peer_selects(policy.subject, "", subject, self._matcher.namespaces)
            )
        return self._selecting[key]

    def _rules_for(self, question: Question) -> list[tuple[RuleRef, Rule]]:
        """The rules whose peers match the other end, for any port, the strongest first."""
        key = (question.subject, question.direction, question.other)
        if key not in self._about:
            self._about[key] = [
                (policy.rule_ref(question.direction, index), rule)
                for policy in self.selecting(question.subject, question.direction)
                for index, rule in enumerate(policy.rules(question.direction))
                if self._matcher.rule_is_about("", rule, question.other)
            ]
        return self._about[key]
