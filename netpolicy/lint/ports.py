"""Ports that the destination pods do not have: unknown names, and the port of a Service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netpolicy.cluster import Cluster, Pod, Service
from netpolicy.lint.common import Finding, peer_pods, rules, some, subjects
from netpolicy.selectors import matches
from netpolicy.types import Direction, NetworkPolicy, PortRule, Rule


def named_port_missing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, index, rule in rules(policy):
        for place, port in enumerate(rule.ports):
            if not isinstance(port.port, str):
                continue
            ingress = direction is Direction.INGRESS
            found = subjects(policy, cluster) if ingress else peer_pods(policy, rule, cluster)
            if not found or any(pod.labels.ports_named(port.port, port.protocol) for pod in found):
                continue
            who = "no pod that the policy selects" if ingress else "no pod that the rule allows"
            message = f"{who} has a {port.protocol} port named {port.port}{_other_names(found, port)}"
            yield Finding(policy.ref, "named-port-missing", f"spec.{direction}[{index}].ports[{place}].port", message)


def _other_names(pods: Iterable[Pod], wanted: PortRule) -> str:
    ports = {port for pod in pods for port in pod.ports}
    other = sorted({str(port.protocol) for port in ports if port.name == wanted.port})
    if other:
        return f" (there is one for {', '.join(other)}: set protocol)"
    if not ports:
        return ": give the containerPort this name, or use a number"
    return f": use one of their ports, {some(f'{port.name} ({port})' if port.name else port for port in ports)}"


def port_of_service(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """A rule names the port of a Service. Policy sees a packet after the Service's translation, with the port of the
    pod."""
    for direction, index, rule in rules(policy):
        destinations = _distinct(_destinations(policy, direction, rule, cluster))
        for place, port in enumerate(rule.ports):
            targets = _targets(port, destinations, cluster)
            if not targets or any(_allows(other, targets) for other in rule.ports):
                continue
            service, numbers = next(iter(targets.items()))
            message = (
                f"{port} is the port of {service}, and no pod behind it listens there: policy sees the port of the "
                f"pod; use {some(numbers)}"
            )
            yield Finding(policy.ref, "port-of-service", f"spec.{direction}[{index}].ports[{place}].port", message)


def _destinations(policy: NetworkPolicy, direction: Direction, rule: Rule, cluster: Cluster) -> list[Pod]:
    """The pods that the ports of a rule are those of. None for a rule that addresses may match: they may listen on any
    port."""
    if direction is Direction.INGRESS:
        return subjects(policy, cluster)
    if not rule.peers or any(peer.block is not None for peer in rule.peers):
        return []
    return peer_pods(policy, rule, cluster)


def _distinct(pods: Iterable[Pod]) -> list[Pod]:
    """One pod of each kind: replicas have the same labels and ports."""
    return list({(pod.labels, pod.ports): pod for pod in pods}.values())


def _targets(port: PortRule, destinations: list[Pod], cluster: Cluster) -> dict[Service, list[int]]:
    """The Services that have this port, each with the ports of the pods behind it. Empty if a pod has the port."""
    if not isinstance(port.port, int) or port.end_port is not None:
        return {}
    found: dict[Service, list[int]] = {}
    for service in cluster.services:
        for pod in destinations:
            if not _is_behind(pod, service):
                continue
            for each in service.ports:
                numbers = _numbers(pod, each.target, port)
                if each.protocol is not port.protocol:
                    continue
                if port.port in numbers:
                    return {}
                if each.port == port.port and numbers:
                    found.setdefault(service, []).extend(numbers)
    if any(each.port == port.port and each.protocol is port.protocol for pod in destinations for each in pod.ports):
        return {}
    return found


def _is_behind(pod: Pod, service: Service) -> bool:
    if pod.namespace != service.namespace or service.selector is None:
        return False
    return matches(service.selector, pod.labels.mapping)


def _numbers(pod: Pod, target: int | str, port: PortRule) -> list[int]:
    return [target] if isinstance(target, int) else list(pod.labels.ports_named(target, port.protocol))


def _allows(port: PortRule, targets: dict[Service, list[int]]) -> bool:
    """True if another entry of the rule has the right port: then the wrong one does no harm."""
    if port.port is None or isinstance(port.port, str):
        return True
    last = port.end_port or port.port
    return any(port.port <= number <= last for numbers in targets.values() for number in numbers)
