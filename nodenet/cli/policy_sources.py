"""Reads the objects for `nodenet policy`: from manifests, from a running lab, or from a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from netpolicy import foreign, objects
from netpolicy.cluster import Cluster
from netpolicy.types import PolicyError
from nodenet import manifests
from nodenet.cli import policy_format
from nodenet.errors import BadInputError

_F = TypeVar("_F", bound=Callable[..., Any])
_LAB_KINDS = ("Node", "Namespace", "Pod", "Service", "NetworkPolicy")
# Workloads that create pods. One without pods is included too, because a policy may select its future pods. (A
# ReplicaSet belongs to a Deployment.)
_LAB_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
# For credentials that only kubectl can read.
_KUBECTL = (
    "or let kubectl read the cluster: kubectl get pods,namespaces,nodes,services,networkpolicies,deployments,"
    "replicasets,statefulsets,daemonsets,jobs,cronjobs -A -o json | nodenet policy lint -f -"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the objects come from. `namespace` is that of objects in files without one."""

    files: tuple[str, ...] = ()
    lab: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str = "default"

    @property
    def given(self) -> bool:
        return bool(self.files or self.lab or self.from_cluster)

    @property
    def from_cluster(self) -> bool:
        return bool(self.kubeconfig or self.context)

    @property
    def running(self) -> bool:
        """True if the pods are those that exist now: a pod without an address has none yet."""
        return not self.files


def source_options(command: _F) -> _F:
    """The shared options that select the objects. The command takes them as `source: Source`."""
    options = (
        click.option(
            "-f",
            "--file",
            "files",
            multiple=True,
            metavar="FILE_OR_DIR",
            help="Manifests: YAML or JSON files, also gzip, or folders; - for the standard input. May be given several "
            "times.",
        ),
        click.option("--lab", metavar="NAME", help="Use the objects of a running lab instead of manifests."),
        click.option("--kubeconfig", metavar="FILE", help="Use the objects of the cluster that this kubeconfig names."),
        click.option(
            "--context",
            metavar="NAME",
            help="The context of the kubeconfig. Without --kubeconfig: of KUBECONFIG, or ~/.kube/config.",
        ),
        click.option(
            "-n",
            "--namespace",
            default="default",
            show_default=True,
            help="Namespace of objects and names without one.",
        ),
    )

    def with_source(*arguments: Any, **values: Any) -> Any:
        keys = ("files", "lab", "kubeconfig", "context", "namespace")
        source = Source(**{key: values.pop(key) for key in keys})
        return command(*arguments, source=source, **values)

    with_source.__doc__, with_source.__name__ = command.__doc__, command.__name__
    # Options below this one were added to the command itself.
    with_source.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        with_source = option(with_source)
    return with_source  # type: ignore[return-value]


def read(source: Source) -> Cluster:
    """The objects, with notes on stderr. Raises BadInputError unless exactly one source is given."""
    require_one_stdin(source.files)
    if [bool(source.files), bool(source.lab), source.from_cluster].count(True) != 1:
        raise BadInputError("expected one of -f FILE_OR_DIR, --lab NAME and --kubeconfig FILE", "see --help")
    if source.lab:
        found = from_lab(source.lab)
    elif source.from_cluster:
        found = from_cluster(source.kubeconfig, source.context)
    else:
        found = from_files(source.files, source.namespace)
    print_notes(found)
    return found


def require_one_stdin(names: Sequence[str]) -> None:
    """Raises BadInputError if several options read the standard input: the second one would find it empty."""
    if list(names).count(manifests.STDIN) > 1:
        raise BadInputError("the standard input (-) can be read only once", "write one of the inputs to a file")


def from_files(paths: Sequence[str], namespace: str) -> Cluster:
    """All objects of the manifests. Raises BadInputError naming file, object and field."""
    context = click.get_current_context(silent=True)
    loaded = manifests.load(paths, context.command_path if context else "nodenet policy lint")
    if not loaded:
        raise BadInputError(
            f"{', '.join(map(str, paths))}: no Kubernetes objects", "give YAML files or a folder with YAML files"
        )
    for manifest in loaded:
        _read([manifest.data], namespace, strict=True, source=f"{manifest.source}: ")
    return _read([manifest.data for manifest in loaded], namespace, strict=True)


def from_lab(name: str) -> Cluster:
    """The current objects of a running lab's API, with real pod names and addresses."""
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    found = [obj for kind in (*_LAB_KINDS, *_LAB_WORKLOADS) for obj in client.objects(kind)]
    for resource in client.custom():
        if resource.kind in foreign.KINDS.get(resource.group, ()):
            found += client.listing(resource)[0]
    return _read(found, "default", strict=False, live=True)


def from_cluster(kubeconfig: str | None, context: str | None) -> Cluster:
    """The current objects of a cluster's API."""
    from nodenet.kube import config, listing

    try:
        path = Path(kubeconfig) if kubeconfig else config.default_kubeconfig()
        access = config.from_kubeconfig(path, context or "", plugins=True)
    except BadInputError as error:
        raise BadInputError(str(error), error.hint or _KUBECTL) from error
    found = listing.read(access)
    for note in found.notes:
        click.echo(f"warning: {note}", err=True)
    return _read(found.objects, "default", strict=False, live=True)


def _read(
    data: Iterable[dict[str, Any]], namespace: str, strict: bool, source: str = "", live: bool = False
) -> Cluster:
    try:
        return objects.cluster(data, namespace, strict, live=live)
    except PolicyError as error:
        raise BadInputError(f"{source}{error}", "correct this field, as the API server would refuse it too") from error


def print_notes(cluster: Cluster) -> None:
    """Print on stderr which policies are not evaluated, which kinds were skipped, and which pods cannot match ipBlocks
    because their address is unknown."""
    if cluster.foreign:
        click.echo(f"WARNING: {foreign.warning(cluster.foreign)}", err=True)
    if cluster.skipped:
        kinds = Counter(name.partition(" ")[0] for name in cluster.skipped)
        counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        click.echo(f"note: kinds that do not affect policy were skipped: {counts}", err=True)
    blocks = any(
        peer.block is not None and (peer.block.cidr.prefixlen or peer.block.excepts)
        for found in cluster.every_policy
        for rule in (*found.ingress, *found.egress)
        for peer in rule.peers
    )
    unknown = [str(pod) for pod in cluster.pods if not pod.ips]
    if blocks and unknown:
        click.echo(
            f"note: ipBlock rules cannot match pods without status.podIP in the input: {policy_format.some(unknown)}",
            err=True,
        )
