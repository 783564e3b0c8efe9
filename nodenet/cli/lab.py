"""`nodenet lab`: virtual nodes on this machine. This module has the group and the commands for whole labs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodenet.cli.extras import require
from nodenet.cli.lab_common import (
    load_manifests,
    manifest_option,
    name_option,
    node_names,
    say,
    say_notes,
    say_unserved,
)
from nodenet.cli.lab_objects import apply, delete, get
from nodenet.cli.lab_traffic import exec_, probe
from nodenet.cli.lab_trouble import agent, trouble
from nodenet.cli.output import Column, Format, emit, emit_document, output_option
from nodenet.cli.program import pasteable

if TYPE_CHECKING:
    from nodenet.lab.apply import Result
    from nodenet.lab.client import LabClient

# A change of the proxy restarts every agent.
_SWITCH_SECONDS = 90.0


@click.group()
def lab() -> None:
    """Virtual nodes on this machine, with real agents and the real CNI plugin. Only the pods' containers are replaced
    by a small program."""


for _command in (apply, delete, get, exec_, probe, agent, trouble):
    lab.add_command(_command)


@lab.command()
@manifest_option
@click.option("--nodes", default=1, show_default=True, metavar="N", help="How many nodes (at most 200).")
@click.option(
    "--ip-family", type=click.Choice(["ipv4", "ipv6", "dual"]), default="ipv4", show_default=True, help="Addresses."
)
@name_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until every pod is ready.")
@click.option("--timeout", default=120.0, show_default=True, metavar="SECONDS", help="Limit for the whole command.")
@click.option(
    "--node-cidr-mask-size",
    "mask_size",
    default=24,
    show_default=True,
    metavar="BITS",
    help="Prefix length of each node's IPv4 pod network (24-30).",
)
@click.option(
    "--agent-set",
    "agent_set",
    multiple=True,
    metavar="[NODE:]KEY=VALUE",
    help="A key of the agents' configuration, map sizes included; may be given several times.",
)
@click.option(
    "--agent-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="The agents' configuration as YAML; --agent-set overrides it.",
)
@click.option(
    "--proxy",
    type=click.Choice(["ebpf", "iptables", "nftables", "ipvs"]),
    default="ebpf",
    show_default=True,
    help="What serves Services: the agent, or rules as kube-proxy writes them.",
)
@click.option("--dns/--no-dns", default=True, show_default=True, help="DNS pods in kube-system (Service kube-dns).")
@click.option(
    "--dns-upstream",
    default="",
    metavar="IP",
    help="A DNS server that pods reach, for names outside of the cluster. Default: there are no such names.",
)
@click.option(
    "--settable-clock", is_flag=True, help="Start agents whose clock `lab trouble clock` can set (needs a C compiler)."
)
def up(
    files: Sequence[str],
    nodes: int,
    ip_family: str,
    name: str,
    wait: bool,
    timeout: float,
    mask_size: int,
    agent_set: Sequence[str],
    agent_config: Path | None,
    proxy: str,
    dns: bool,
    dns_upstream: str,
    settable_clock: bool,
) -> None:
    """Start a lab: nodes, an agent on each, and the pods of the manifests.

    All input is checked before anything is created. If the start fails later, everything is removed again.
    """
    # Check this first: the daemon and the agents import these modules in other processes.
    require("lab", "lab up")
    from nodenet.lab import apply as applying
    from nodenet.lab import cluster_dns, layout, proxies, settings
    from nodenet.lab import up as starting
    from nodenet.lab.files import Dns, LabState

    started = time.monotonic()
    plan = layout.plan(name, nodes, layout.IPFamily(ip_family), mask_size)
    agents = settings.parse(agent_set, _mapping(agent_config), plan)
    upstream = cluster_dns.check_upstream(dns_upstream, plan)
    state = LabState(plan, mask_size, agents, proxy=proxy, dns=Dns(dns, upstream))
    if proxy != proxies.EBPF:
        settings.check_proxy(state.agents, proxy)
    prepared = applying.prepare(load_manifests(files))
    say_notes(prepared)
    starting.check_host()
    proxies.check(proxy)
    starting.check_new(name)
    deadline = started + timeout
    with starting.removed_on_failure(name):
        client = starting.start(state, say, deadline, settable_clock=settable_clock)
        if prepared.objects:
            say(_counted(applying.apply(client.writer(), prepared)))
            say_unserved(prepared)
        if wait:
            starting.wait_ready(client, say, deadline)
    _summary(client, time.monotonic() - started)


def _mapping(file: Path | None) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInputError naming the file."""
    import yaml

    from nodenet.errors import BadInputError

    if file is None:
        return {}
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInputError(f"{file}: not a YAML file: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInputError(f"{file}: expected keys and values, got {type(found).__name__}")
    return found


def _summary(client: LabClient, seconds: float) -> None:
    """Print the objects of the lab, and commands to try next."""
    from nodenet.lab import ready

    pods, services = client.objects("Pod"), client.objects("Service")
    counts = [(len(client.plan.nodes), "node"), (len(pods), "pod"), (len(services), "Service")]
    counts.append((len(client.objects("NetworkPolicy")), "NetworkPolicy"))
    for sentence in ready.without_endpoints(services, client.objects("EndpointSlice")):
        say(f"note: {sentence}")
    option = "" if client.lab == "lab" else f" --name {client.lab}"
    click.echo(f"lab {client.lab} is up after {seconds:.1f} s: " + ", ".join(_plural(*count) for count in counts))
    for line in (
        f"nodenet lab get pods -A -o wide{option}",
        f"nodenet lab probe --matrix{option}",
        f"nodenet observe --follow --lab {client.lab}",
        f"export KUBECONFIG=$(nodenet lab kubeconfig{option})",
        f"nodenet lab down{option}",
    ):
        click.echo(f"  {pasteable(line)}")


def _counted(results: Sequence[Result]) -> str:
    """The number of applied objects by kind."""
    kinds = Counter(result.resource.kind for result in results)
    return "applied: " + ", ".join(_plural(count, kind) for kind, count in kinds.items())


def _plural(count: int, word: str) -> str:
    if count == 1:
        return f"1 {word}"
    return f"{count} {word[:-1]}ies" if word.endswith("y") else f"{count} {word}s"


@lab.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="Every lab on this machine.")
def down(name: str, everything: bool) -> None:
    """Remove a lab: namespaces, links, pins, mounts, cgroups, processes and files. Also after a crash."""
    from nodenet.errors import CannotRunError
    from nodenet.lab import teardown

    try:
        found = teardown.labs() if everything else [name]
        if not found:
            say("there is no lab")
        for each in found:
            say(f"lab {each} is gone" if teardown.down(each) else f"lab {each}: there was nothing to remove")
    except PermissionError as error:
        raise CannotRunError(f"not permitted: {error}", "use sudo") from error


@lab.command("list")
@output_option
def list_(output: Format) -> None:
    """List the labs on this machine."""
    from nodenet.errors import NodenetError
    from nodenet.lab import files, teardown

    rows: list[dict[str, Any]] = []
    for name in teardown.labs():
        try:
            state = files.read_state(name)
            row = {"name": name, "state": "running" if state.alive else "broken", "nodes": len(state.plan.nodes)}
            rows.append(row | {"ipFamily": state.plan.family.value, "api": f"http://127.0.0.1:{state.port}"})
        except NodenetError:
            rows.append({"name": name, "state": "leftover", "nodes": None, "ipFamily": None, "api": None})
    columns = [("NAME", "name"), ("STATE", "state"), ("NODES", "nodes"), ("IP-FAMILY", "ipFamily"), ("API", "api")]
    emit(rows, [Column(*column) for column in columns], output)


@lab.command()
@name_option
@output_option
def status(name: str, output: Format) -> None:
    """Show whether the lab is healthy. Exit code 1 if an agent or a pod is not ready."""
    from nodenet.lab import ready
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    daemon = client.control("GET", "/status")
    workloads = [obj for kind in ready.WORKLOADS for obj in client.objects(kind)]
    progress = ready.progress(client.objects("Pod"), workloads)
    written = all(proxy.get("writes") and proxy["pid"] for proxy in daemon["proxies"])
    healthy = progress.done and written and all(agent["state"] == "ready" for agent in daemon["agents"])
    data = {
        **daemon,
        "healthy": healthy,
        "ipFamily": client.plan.family.value,
        "pods": {"ready": progress.ready, "total": progress.total, "waiting": list(progress.waiting)},
        "problems": list(progress.problems),
    }
    agents = [f"{a['node']}: agent {a['state']}, pid {a['pid']}, {a['restarts']} restarts" for a in daemon["agents"]]
    lines = [
        f"lab {name}: {'healthy' if healthy else 'not healthy'}, {data['ipFamily']}, since {daemon['startedAt']}",
        *(f"  {line}" for line in agents),
        f"  Services: {daemon['proxy']}",
        *(f"  {p['node']}: {p['mode']} rules, pid {p['pid']}, {p['restarts']} restarts" for p in daemon["proxies"]),
        *(f"  staged: {each['node']}: {each['kind']} {each['what']}" for each in daemon["troubles"]),
        f"  pods: {progress.ready} of {progress.total} ready",
        *(f"  {problem}" for problem in progress.problems),
    ]
    emit_document(data, output, "\n".join(lines))
    sys.exit(0 if healthy else 1)


@lab.command()
@click.argument("mode", type=click.Choice(["ebpf", "iptables", "nftables", "ipvs"]))
@name_option
def proxy(mode: str, name: str) -> None:
    """Change what serves Services on all nodes: the agents (ebpf), or rules as kube-proxy writes them.

    The rules are in each node's namespace: `ip netns exec nn.LAB.NODE iptables -t nat -L`, `nft list ruleset`,
    `ipvsadm -Ln`. During the change Services do not answer for a moment.
    """
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    client.control("POST", "/act/proxy", {"mode": mode}, seconds=_SWITCH_SECONDS)
    say(f"lab {name}: Services: {mode}")


@lab.command()
@name_option
def kubeconfig(name: str) -> None:
    """Print the path of a kubeconfig for the lab's API."""
    from nodenet.lab import files

    files.running(name)
    click.echo(files.LabFiles(name).kubeconfig)


@lab.command()
@click.argument("node", required=False, shell_complete=node_names)
@name_option
@click.option("--tail", type=click.IntRange(min=0), default=0, metavar="N", help="Only the last N lines.")
@click.option("-n", "--lines", "lines", type=click.IntRange(min=0), default=0, hidden=True, help="The same as --tail.")
def logs(node: str | None, name: str, tail: int, lines: int) -> None:
    """Print the log of NODE's agent, or of the lab's daemon."""
    from nodenet.lab import files

    state = files.read_state(name)
    folder = files.LabFiles(name)
    log = folder.node(state.plan.node(node).name) / "agent.log" if node else folder.log
    text = log.read_text(errors="replace") if log.exists() else ""
    click.echo("\n".join(text.splitlines()[-(tail or lines) :]))
