"""`nodenet policy diff`: what another set of policies would change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import click

from netpolicy import diff, matrix
from netpolicy.cluster import Cluster
from netpolicy.parse_cluster import KIND
from netpolicy.recorded import Record, Seen
from netpolicy.types import ClusterPolicy, NetworkPolicy, Policy, PolicyRef
from nodenet.cli import policy_flows, policy_format, policy_sources
from nodenet.cli.output import Format, emit_document, output_option
from nodenet.cli.policy_sources import Source, source_options
from nodenet.errors import BadInputError, NodenetError


@dataclass(frozen=True, slots=True)
class _Set:
    """The other set, as the options give it."""

    added: tuple[str, ...]
    instead: tuple[str, ...]
    without: tuple[str, ...]


@click.command("diff", short_help="Compare two sets of policies, and what they do to recorded flows.")
@source_options
@click.option(
    "--with",
    "added",
    multiple=True,
    metavar="FILE_OR_DIR",
    help="Add these policies; one with the name of an existing policy replaces it, as kubectl apply does.",
)
@click.option(
    "--instead", multiple=True, metavar="FILE_OR_DIR", help="Use these policies in place of all existing ones."
)
@click.option("--without", multiple=True, metavar="NS/NAME", help="Remove this policy.")
@click.option(
    "--ports", metavar="PORT[/PROTO],...", help="Ports to compare for every pod. Default: each pod's containerPorts."
)
@click.option(
    "--flows",
    metavar="FILE",
    help="Recorded flows (nodenet observe -o json, hubble observe -o json): which of their connections would be cut.",
)
@output_option
@click.pass_context
def diff_command(
    ctx: click.Context,
    source: Source,
    added: tuple[str, ...],
    instead: tuple[str, ...],
    without: tuple[str, ...],
    ports: str | None,
    flows: str | None,
    output: Format,
) -> None:
    """Compare two sets of policies: which connections change, and which recorded ones would be cut.

    The first set comes from -f, --lab or --kubeconfig; --with, --instead and --without make the second one of it. Of
    the files of --with and --instead, pods and namespaces are used too.

    Exit code 0: no difference. 1: something changes. 2: an error.
    """
    with _errors_as_two():
        policy_sources.require_one_stdin([*source.files, *added, *instead, flows or ""])
        before = policy_sources.read(source)
        wanted = _Set(added, instead, without)
        before, after = diff.together(before, _other(before, wanted, source.namespace))
        try:
            asked = None if ports is None else matrix.parse_ports(ports)
        except ValueError as error:
            raise BadInputError(f"--ports: {error}") from error
        found = diff.compare(before, after, asked)
        data: dict[str, Any] = {
            "compared": found.compared,
            "changes": [change.as_json() for change in found.changes],
        }
        text = policy_format.changes(found)
        cut = False
        if flows is not None:
            data["flows"], more, cut = _flows(policy_flows.from_file(flows), before, after)
            text += "\n\n" + more
        emit_document(data, output, text)
    ctx.exit(1 if found.changes or cut else 0)


@contextmanager
def _errors_as_two() -> Iterator[None]:
    """1 means a difference here."""
    try:
        yield
    except NodenetError as error:
        error.exit_code = 2
        raise


def _other(before: Cluster, wanted: _Set, namespace: str) -> Cluster:
    """The cluster with the other set of policies. Raises BadInputError if no option gives one."""
    if wanted.added and wanted.instead:
        raise BadInputError("--with and --instead cannot be combined: --instead drops the existing policies")
    if not (wanted.added or wanted.instead or wanted.without):
        raise BadInputError("expected a second set: --with FILE, --instead FILE or --without NS/NAME", "see --help")
    policies: dict[PolicyRef, Policy] = {}
    if not wanted.instead:
        policies = {policy.ref: policy for policy in before.every_policy}
    files = wanted.added or wanted.instead
    given = policy_sources.from_files(files, namespace) if files else Cluster()
    policy_sources.print_notes(given)
    policies |= {policy.ref: policy for policy in given.every_policy}
    for name in wanted.without:
        place, slash, policy = name.rpartition("/")
        ref = PolicyRef("" if place == KIND else place if slash else namespace, policy)
        if ref not in policies:
            known = ", ".join(sorted(map(str, policies))) or "none"
            raise BadInputError(f"--without {name}: there is no policy {ref}; there are: {known}")
        del policies[ref]
    own = tuple(policy for policy in policies.values() if isinstance(policy, NetworkPolicy))
    wide = tuple(policy for policy in policies.values() if isinstance(policy, ClusterPolicy))
    return replace(given, policies=own, cluster_policies=wide)


def _flows(record: Record, before: Cluster, after: Cluster) -> tuple[dict[str, Any], str, bool]:
    """What becomes of recorded connections: as data, as text, and whether one would be cut."""
    passed, denied = record.passed(), record.denied()
    effect = diff.effect(passed, denied, before, after)
    data = {
        "connections": len(passed),
        "cut": [_flow_json(seen, passed[seen]) for seen in effect.cut],
        "opened": [_flow_json(seen, denied[seen]) for seen in effect.opened],
        "deniedByBoth": [_flow_json(seen, passed[seen]) for seen in effect.denied],
    }
    return data, policy_format.effect(effect, passed), bool(effect.cut)


def _flow_json(seen: Seen, times: int) -> dict[str, Any]:
    return {
        "from": str(seen.source),
        "to": str(seen.destination),
        "port": seen.traffic.port,
        "protocol": str(seen.traffic.protocol),
        "times": times,
    }
