"""Groups pods by workload, and finds for each group a selector that selects its pods and no others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from netpolicy.cluster import Pod
from netpolicy.fields import is_dns_subdomain
from netpolicy.selectors import matches
from netpolicy.types import Operator, Protocol, Requirement, Selector

# Labels that controllers set. They change with every rollout, or differ between the pods of one workload.
_CHANGING = frozenset(
    {
        "pod-template-hash",
        "rollouts-pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "job-name",
        "controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/cronjob-scheduled-timestamp",
    }
)
# Labels that name an application, the usual ones first.
_NAMING = (
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "component",
    "role",
    "tier",
)

ANYTHING = Selector()
_NO_NAME = re.compile(r"[^a-z0-9.-]+")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The pods of a workload, or of several that no label tells apart. There is one object for each."""

    namespace: str
    workloads: tuple[str, ...]
    pods: tuple[Pod, ...]
    selector: Selector = ANYTHING

    @property
    def name(self) -> str:
        """A name for its policy."""
        name = _NO_NAME.sub("-", "-".join(self.workloads).lower())[:_LONGEST_NAME].strip("-.")
        return name if is_dns_subdomain(name) else "workload"

    def __str__(self) -> str:
        return f"{self.namespace}/{'+'.join(self.workloads)}"

    def port_name(self, protocol: Protocol, port: int) -> str:
        """The name of a port that means exactly this number at every pod; empty if there is none."""
        names = {found.name for found in self.pods[0].labels.named_ports if found.port == port}
        fitting = [
            name
            for name in sorted(names)
            if all(pod.labels.ports_named(name, protocol) == (port,) for pod in self.pods)
        ]
        return next(iter(fitting), "")


def group(pods: Iterable[Pod]) -> dict[tuple[str, str], Group]:
    """The group of each pod, by the pod's namespace and name. Workloads with equal labels become one group."""
    workloads: dict[tuple[str, str], list[Pod]] = defaultdict(list)
    for pod in pods:
        workloads[pod.namespace, pod.workload].append(pod)
    namespaces: dict[str, list[Group]] = defaultdict(list)
    for (namespace, workload), found in sorted(workloads.items()):
        namespaces[namespace].append(Group(namespace, (workload,), tuple(sorted(found, key=str))))
    return {
        (pod.namespace, pod.name): each
        for groups in namespaces.values()
        for each in _separated(groups)
        for pod in each.pods
    }


def _separated(groups: list[Group]) -> list[Group]:
    """The groups with their selectors. Merges those that no selector can tell apart."""
    while True:
        found: list[Group] = []
        for own in groups:
            selector, inseparable = _selector(own, [other for other in groups if other is not own])
            if inseparable is not None:
                merged = _merged(own, inseparable)
                groups = [merged, *(each for each in groups if each is not own and each is not inseparable)]
                break
            found.append(Group(own.namespace, own.workloads, own.pods, selector))
        else:
            return found


def _merged(one: Group, other: Group) -> Group:
    workloads = tuple(sorted({*one.workloads, *other.workloads}))
    return Group(one.namespace, workloads, tuple(sorted({*one.pods, *other.pods}, key=str)))


def _selector(own: Group, others: list[Group]) -> tuple[Selector, Group | None]:
    """The fewest requirements that all pods of the group meet and no other pod does, with a naming label first. Also
    the first other group with a pod that cannot be excluded."""
    candidates = _candidates(own, others)
    chosen = [each for each in candidates if each.operator is Operator.IN and each.key in _NAMING][:1]
    left = [(each, pod) for each in others for pod in each.pods if matches(Selector(tuple(chosen)), pod.labels.mapping)]
    while left:
        # The first of several that exclude as many: candidates are in order of preference.
        best = max(candidates, key=lambda each: _excluded(each, left), default=None)
        if best is None or not _excluded(best, left):
            return Selector(), left[0][0]
        chosen.append(best)
        left = [(each, pod) for each, pod in left if matches(Selector((best,)), pod.labels.mapping)]
    if not chosen:
        chosen = [each for each in candidates if each.operator is Operator.IN][:1]
    return Selector(tuple(chosen)), None


def _excluded(requirement: Requirement, left: list[tuple[Group, Pod]]) -> int:
    return sum(not matches(Selector((requirement,)), pod.labels.mapping) for _, pod in left)


def _candidates(own: Group, others: list[Group]) -> list[Requirement]:
    """What all pods of the group meet: common labels, common keys, keys and values that only others have."""
    labels = [_stable(pod) for pod in own.pods]
    keys = set.intersection(*(set(each) for each in labels))
    common = [key for key in keys if len({each[key] for each in labels}) == 1]
    foreign: dict[str, set[str]] = defaultdict(set)
    for key, value in (pair for other in others for pod in other.pods for pair in _stable(pod).items()):
        foreign[key].add(value)
    absent = foreign.keys() - {key for each in labels for key in each}
    values = {key: found - {each.get(key) for each in labels} for key, found in foreign.items()}
    return [
        *(Requirement(key, Operator.IN, (labels[0][key],)) for key in sorted(common, key=_preference)),
        *(Requirement(key, Operator.EXISTS) for key in sorted(keys - set(common), key=_preference)),
        *(Requirement(key, Operator.DOES_NOT_EXIST) for key in sorted(absent, key=_preference)),
        *(
            Requirement(key, Operator.NOT_IN, tuple(sorted(values[key])))
            for key in sorted(foreign.keys() - absent, key=_preference)
            if values[key]
        ),
    ]


def _stable(pod: Pod) -> dict[str, str]:
    return {key: value for key, value in pod.labels.mapping.items() if key not in _CHANGING}


def _preference(key: str) -> tuple[int, str]:
    return (_NAMING.index(key) if key in _NAMING else len(_NAMING)), key
