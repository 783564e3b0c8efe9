"""The tiers of policy, each with an evaluator that accepts, denies, or leaves the decision to the next tier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol as Interface

from netpolicy.match import Matcher, ports_match
from netpolicy.party import Party, Question
from netpolicy.selectors import matches
from netpolicy.types import Direction, LabelSet, NetworkPolicy, PolicyRef, Rule, RuleRef, Tier


class Answer(StrEnum):
    """The answer of one tier."""

    ACCEPT = "accept"
    DENY = "deny"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class Step:
    """What one tier says about one direction of a connection. `rules`: those that decide, in order; a Deny of the
    NetworkPolicy tier has none. `isolated_by`: the NetworkPolicies that isolate the pod."""

    tier: Tier
    answer: Answer
    rules: tuple[RuleRef, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()


class TierEvaluator(Interface):
    """One tier."""

    @property
    def tier(self) -> Tier: ...

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
