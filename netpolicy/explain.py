"""Explains why a connection is allowed or denied: the allowing rules, or the isolating policies and why each rule
does not match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from netpolicy.evaluate import DirectionVerdict, Evaluator, Reason, Verdict
from netpolicy.match import port_matches, ports_match
from netpolicy.party import Party, Traffic
from netpolicy.pipeline import Step
from netpolicy.selectors import matches
from netpolicy.types import (
    ClusterPolicy,
    Direction,
    LabelSet,
    Peer,
    PolicyRef,
    PortRule,
    Problem,
    Requirement,
    Rule,
    RuleRef,
    Selector,
    Tier,
    namespace_labels,
)

_OTHER_SIDE = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


@dataclass(frozen=True, slots=True)
class Miss:
    """A rule of an isolating policy that does not allow the connection. `rule` None: the policy has no rules."""

    policy: PolicyRef
    rule: RuleRef | None
    peer_matches: bool
    port_matches: bool
    text: str


@dataclass(frozen=True, slots=True)
class Side:
    """The result for one direction. `summary` is a sentence; `misses` begin with the closest rule; `missing`
    describes a rule that would allow the connection. `passed_by`: rules that left the decision to a later tier.
    `notes`: rules that do not do what their author wrote."""

    direction: Direction
    subject: str
    allowed: bool
    reason: Reason
    summary: str
    isolated_by: tuple[PolicyRef, ...]
    allowed_by: tuple[RuleRef, ...]
    misses: tuple[Miss, ...]
    missing: str
    denied_by: tuple[RuleRef, ...] = ()
    passed_by: tuple[RuleRef, ...] = ()
    steps: tuple[Step, ...] = ()
    names: Mapping[RuleRef, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result for one pair of ends."""

    source: Party
    destination: Party
    traffic: Traffic
    allowed: bool
    egress: Side
    ingress: Side


def explain(evaluator: Evaluator, source: Party, destination: Party, traffic: Traffic) -> Explanation:
    """Both directions' verdicts with their reasons."""
    verdict = evaluator.verdict(source, destination, traffic)
    sides = [_side(evaluator, direction, source, destination, traffic, verdict) for direction in Direction]
    ingress, egress = sides
    return Explanation(source, destination, traffic, verdict.allowed, egress, ingress)


def _side(
    evaluator: Evaluator, direction: Direction, source: Party, destination: Party, traffic: Traffic, verdict: Verdict
) -> Side:
    ingress = direction is Direction.INGRESS
    subject, other = (destination, source) if ingress else (source, destination)
    found = verdict.ingress if ingress else verdict.egress
    asked = _Asked(other, destination, traffic)
    misses: list[Miss] = []
    missing = ""
    if found.reason is Reason.NO_RULE and subject.labels is not None:
        for policy in evaluator.isolating(subject.labels, direction):
            rules = policy.rules(direction)
            if not rules:
                misses.append(Miss(policy.ref, None, False, False, f"has no {direction} rules, so it allows nothing"))
            for index, rule in enumerate(rules):
                ref = policy.rule_ref(direction, index)
                miss = _miss(evaluator, policy.ref, ref, rule, asked)
                misses.append(_with_problems(miss, policy.problems_of(direction, index)))
        misses.sort(key=lambda miss: (not miss.peer_matches, not miss.port_matches, miss.rule is None))
        missing = (
            f"an {direction} rule {_OTHER_SIDE[direction]} {describe(other)} on {traffic}, in a policy that selects "
            f"{describe(subject)}"
        )
    if found.denied_by:
        missing = f"a rule with the action Accept or Pass that is stronger than {found.denied_by[0]}"
    summary = _summary(evaluator, found, subject)
    return Side(
        direction,
        subject.name,
        found.allowed,
        found.reason,
        summary,
        found.isolated_by,
        found.allowed_by,
        tuple(misses),
        missing,
        found.denied_by,
        found.passed_by,
        found.steps,
        {rule: _name(evaluator, rule) for step in found.steps for rule in step.rules},
        _notes(evaluator, direction, subject),
    )


def _name(evaluator: Evaluator, ref: RuleRef) -> str:
    """What the author calls a rule; empty if it has no name."""
    policy = evaluator.policy(ref.owner)
    return policy.rules(ref.direction)[ref.index].name if policy is not None else ""


def _notes(evaluator: Evaluator, direction: Direction, subject: Party) -> tuple[str, ...]:
    """The parts of ClusterNetworkPolicies for the subject that are not in force as they are written."""
    if subject.labels is None:
        return ()
    tiers = (evaluator.admin, evaluator.baseline)
    policies = [policy for tier in tiers for policy in tier.selecting(subject.labels, direction)]
    return tuple(
        dict.fromkeys(
            f"{policy.ref}: {problem}"
            for policy in policies
            for index in range(len(policy.rules(direction)))
            for problem in policy.problems_of(direction, index)
        )
    )


def _summary(evaluator: Evaluator, found: DirectionVerdict, subject: Party) -> str:
    direction = found.direction
    match found.reason:
        case Reason.RULE | Reason.DENY_RULE:
            tier, verb = found.steps[-1].tier, "allowed" if found.allowed else "denied"
            if tier is Tier.NETWORK_POLICY:
                return f"{verb} by a rule of a policy that selects {subject.name}"
            policy = evaluator.policy(found.steps[-1].rules[0].owner)
            priority = f", priority {policy.priority}" if isinstance(policy, ClusterPolicy) else ""
            return f"{verb} by a rule of the {tier} tier{priority}"
        case Reason.NO_RULE:
            return f"{subject.name} is isolated for {direction} and no rule allows this"
        case Reason.NOT_ISOLATED:
            if not any(step.rules for step in found.steps) and not _is_concerned(evaluator, found, subject):
                return f"no policy isolates {subject.name} for {direction}: everything is allowed"
            return f"no policy isolates {subject.name} for {direction}, and no rule of another tier denies this"
        case Reason.NOT_A_POD:
            kind = "a node (or a hostNetwork pod)" if subject.host else "outside the cluster"
            return f"{subject.name} is {kind}: NetworkPolicy does not apply to it"
        case Reason.OWN_NODE:
            return f"traffic between {subject.name} and its own node is always allowed"
        case Reason.ITSELF:
            return f"{subject.name} may always reach itself"


def _is_concerned(evaluator: Evaluator, found: DirectionVerdict, subject: Party) -> bool:
    labels = subject.labels
    return labels is not None and any(tier.concerns(labels, found.direction) for tier in evaluator.tiers)


def describe(party: Party) -> str:
    """An end with the attributes that a policy can match: labels and address."""
    known = []
    if party.labels is not None:
        known += [f"{key}={value}" for key, value in party.labels.labels]
    if party.address is not None and party.name != str(party.address):
        known.append(str(party.address))
    return f"{party.name} ({', '.join(known)})" if known else party.name


@dataclass(frozen=True, slots=True)
class _Asked:
    """The traffic of one direction's question. `other`: the end that is not the policy's pod."""

    other: Party
    destination: Party
    traffic: Traffic


def _miss(evaluator: Evaluator, policy: PolicyRef, ref: RuleRef, rule: Rule, asked: _Asked) -> Miss:
    side = _OTHER_SIDE[ref.direction]
    peer_ok = evaluator.matcher.rule_is_about(policy.namespace, rule, asked.other)
    port_ok = ports_match(rule.ports, asked.traffic, asked.destination.labels)
    parts = []
    if not peer_ok:
        reasons = "; ".join(_why_not_peer(evaluator, policy.namespace, peer, asked.other) for peer in rule.peers)
        parts.append(f"{side}: {reasons}")
    if not port_ok:
        reasons = "; ".join(_why_not_port(port, asked.traffic, asked.destination) for port in rule.ports)
        parts.append(f"ports: {reasons}")
    held = f"{side} matches, " if peer_ok else "the port matches, " if port_ok else ""
    return Miss(policy, ref, peer_ok, port_ok, held + " and ".join(parts))


def _with_problems(miss: Miss, problems: tuple[Problem, ...]) -> Miss:
    """Mention parts that could not be read first: they may be the reason why the rule does not match."""
    if not problems:
        return miss
    return replace(miss, text=f"could not be read: {'; '.join(map(str, problems))} (as read: {miss.text})")


def _why_not_port(port: PortRule, traffic: Traffic, destination: Party) -> str:
    if isinstance(port.port, str) and destination.labels is not None:
        numbers = destination.labels.ports_named(port.port, port.protocol)
        if not numbers:
            return f"{destination.name} has no {port.protocol} port named {port.port}"
        return f"{port} is {', '.join(map(str, numbers))} at {destination.name}, not {traffic}"
    if isinstance(port.port, str):
        return f"{port} is a name, and only pods have named ports"
    if traffic.protocol is not None and port_matches(port, Traffic(port.protocol, traffic.port), None):
        return f"{port} is {port.protocol}, not {traffic.protocol}"
    return f"{port}, not {traffic}"


def _why_not_peer(evaluator: Evaluator, namespace: str, peer: Peer, other: Party) -> str:
    if peer.block is not None:
        return _why_not_block(peer, other)
    if other.labels is None:
        return f"{peer} selects pods, and {other.name} is not a pod that policy can select"
    pod = other.labels
    if peer.namespaces is None and pod.namespace != namespace:
        return f"{peer} selects only in namespace {namespace} (no namespaceSelector), not in {pod.namespace}"
    if peer.namespaces is not None:
        labels = namespace_labels(evaluator.matcher.namespaces, pod.namespace)
        if not matches(peer.namespaces, labels):
            return f"namespace {pod.namespace} {_lacks(peer.namespaces, labels)}"
    if peer.pods is not None:
        return f"{other.name} {_lacks(peer.pods, pod.mapping)}"
    return f"{peer} matches nothing"


def _why_not_block(peer: Peer, other: Party) -> str:
    assert peer.block is not None
    if other.address is None:
        return f"{peer}, and no address of {other.name} is known"
    if other.address not in peer.block.cidr:
        return f"{other.address} is not in {peer.block.cidr}"
    hole = next(hole for hole in peer.block.excepts if other.address in hole)
    return f"{other.address} is in {peer.block.cidr} but in its except {hole}"


def _lacks(selector: Selector, labels: Mapping[str, str]) -> str:
    """The requirements of a selector that these labels do not meet."""
    wrong: list[Requirement] = [r for r in selector.requirements if not matches(Selector((r,)), labels)]
    return " and ".join(_lacks_one(requirement, labels) for requirement in wrong)


def _lacks_one(requirement: Requirement, labels: Mapping[str, str]) -> str:
    value = labels.get(requirement.key)
    has = f"has {requirement.key}={value}" if value is not None else f"has no label {requirement.key}"
    return f"{has} (wanted: {requirement})"


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Plain data for -o json and -o yaml."""
    return {
        "from": _party_json(explanation.source),
        "to": _party_json(explanation.destination),
        "port": explanation.traffic.port,
        "protocol": str(explanation.traffic.protocol) if explanation.traffic.protocol else "ICMP",
        "allowed": explanation.allowed,
        "egress": _side_json(explanation.egress),
        "ingress": _side_json(explanation.ingress),
    }


def _party_json(party: Party) -> dict[str, Any]:
    labels: LabelSet | None = party.labels
    return {
        "name": party.name,
        "address": str(party.address) if party.address is not None else None,
        "labels": dict(labels.labels) if labels is not None else None,
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "allowed": side.allowed,
        "reason": str(side.reason),
        "summary": side.summary,
        "isolatedBy": [str(ref) for ref in side.isolated_by],
        "allowedBy": [_named_rule_json(ref, side.names) for ref in side.allowed_by],
        "deniedBy": [_named_rule_json(ref, side.names) for ref in side.denied_by],
        "tiers": [_step_json(step, side.names) for step in side.steps],
        "notes": list(side.notes),
        "notAllowedBy": [
            {"policy": str(miss.policy), "rule": _rule_json(miss.rule), "why": miss.text} for miss in side.misses
        ],
        "missing": side.missing or None,
    }


def _step_json(step: Step, names: Mapping[RuleRef, str]) -> dict[str, Any]:
    rules = [_named_rule_json(ref, names) for ref in step.rules]
    return {"tier": str(step.tier), "answer": str(step.answer), "rules": rules}


def _named_rule_json(ref: RuleRef, names: Mapping[RuleRef, str]) -> dict[str, Any]:
    """The name is that which the author gives a rule of a ClusterNetworkPolicy."""
    return {**(_rule_json(ref) or {}), **({"name": names[ref]} if names.get(ref) else {})}


def _rule_json(ref: RuleRef | None) -> dict[str, Any] | None:
    if ref is None:
        return None
    return {
        "namespace": ref.namespace,
        "policy": ref.policy,
        "direction": str(ref.direction),
        "index": ref.index,
        "field": f"spec.{ref.direction}[{ref.index}]",
    }
