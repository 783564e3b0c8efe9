"""`nodenet lab trouble` and `nodenet lab agent`: staged failures, on all nodes or on some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nodenet.cli.lab_common import name_option, namespace_option, node_names, say
from nodenet.cli.output import Column, Format, emit, output_option

if TYPE_CHECKING:
    from nodenet.lab.client import LabClient
    from nodenet.lab.staging import Staging

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def trouble() -> None:
    """Stage failures, for example an API server that is down or slow, or an agent that hangs. `lab down` ends all of
    them."""


def _staging(name: str) -> Staging:
    from nodenet.lab.client import LabClient
    from nodenet.lab.staging import Staging

    return Staging(LabClient(name))


_for_option = click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the failure after this time. Default: until it is ended by a command.",
)


def _nodes_option(command: _F) -> _F:
    option = click.option(
        "--node",
        "nodes",
        multiple=True,
        metavar="NODE",
        shell_complete=node_names,
        help="Only for this node and its pods; may be given several times. Default: all nodes.",
    )
    return option(command)


@trouble.group()
def api() -> None:
    """Failures between nodes and the API server. kubectl on this machine, the kubelets and the controllers are not
    affected."""


def _lasting_command(mode: str, help_: str, *options: Callable[[Any], Any]) -> None:
    """Define the command for one mode, which lasts until it is ended."""

    def command(name: str, nodes: Sequence[str], seconds: float | None, **values: Any) -> None:
        from nodenet.lab.api_trouble import ApiTrouble, Mode

        _staging(name).set_api(ApiTrouble(Mode(mode), **values), nodes, seconds)

    for option in (name_option, _nodes_option, _for_option, *options):
        command = option(command)
    api.command(mode, help=help_)(command)


_lasting_command("away", "The API server is down: connections are refused, and open ones are reset.")
_lasting_command("blackhole", "Packets are dropped: nothing is acknowledged, open connections stay open.")
_lasting_command("hang", "Connections are accepted, but never answered.")
_lasting_command(
    "slow",
    "Every answer is delayed or slow.",
    click.option(
        "--latency", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Delay of each answer."
    ),
    click.option("--rate", type=click.IntRange(min=0), metavar="BYTES", default=0, help="Limit per second."),
)
_lasting_command(
    "error",
    "Every request is answered with an HTTP error. Open watches continue.",
    click.option("--code", type=int, default=503, show_default=True, help="The HTTP status."),
)


def _one_time_command(event: str, help_: str) -> None:
    """Define the command for an event that happens once."""

    def command(name: str, nodes: Sequence[str]) -> None:
        from nodenet.lab.api_trouble import Event

        count = _staging(name).api_event(Event(event), nodes)
        say(f"{count} {'connections' if event == 'reset' else 'watches'} ended")

    for option in (name_option, _nodes_option):
        command = option(command)
    api.command(event, help=help_)(command)


_one_time_command("reset", "Reset every open connection, once (RST).")
_one_time_command("cut-watches", "End every open watch properly, once. Clients can continue them.")
_one_time_command(
    "expire", "Forget all resourceVersions so far and end every watch with 410 Gone: clients must list again."
)


@api.command()
@name_option
@_nodes_option
def back(name: str, nodes: Sequence[str]) -> None:
    """End the failures: nodes reach the API again."""
    _staging(name).api_back(nodes)


@click.command()
@click.argument("verb", type=click.Choice(["start", "stop", "restart", "kill", "pause", "resume"]))
@click.argument("node", shell_complete=node_names)
@name_option
@_for_option
def agent(verb: str, node: str, name: str, seconds: float | None) -> None:
    """Stop, start, restart, kill -9, pause (SIGSTOP) or resume the agent of NODE.

    A killed agent is restarted automatically. --for applies to pause.
    """
    _staging(name).agent(verb, [node], seconds)


trouble.add_command(agent)


@trouble.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_names)
@name_option
@click.option(
    "--forget", is_flag=True, help="The runtime forgets its sandboxes, as CRI-O does, and calls no CNI DEL for them."
)
def reboot(nodes: Sequence[str], name: str, forget: bool) -> None:
    """Reboot nodes as after a power failure: namespaces, pins and /run are lost, leases remain."""
    for node, boot_id in _staging(name).reboot(*nodes, forget=forget).items():
        say(f"{node}: rebooted, boot id {boot_id}")


@trouble.command()
@click.option("--by", "seconds", type=float, required=True, metavar="SECONDS", help="Forward; negative: back.")
@name_option
@_nodes_option
def clock(seconds: float, name: str, nodes: Sequence[str]) -> None:
    """Change the wall clock of agents in one step. The lab must have been started with --settable-clock."""
    _staging(name).clock(seconds, nodes)


@trouble.group()
def pod() -> None:
    """Change the status of a pod's object. POD is [NS/]NAME, the start of a name, or deploy/NAME, as for `lab exec`."""


def _pod(name: str, namespace: str, word: str) -> tuple[LabClient, dict[str, Any]]:
    from nodenet.lab import find
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    return client, dict(find.pod(client.objects("Pod"), word, namespace))


@pod.command()
@click.argument("word", metavar="POD")
@namespace_option
@name_option
def hold(word: str, namespace: str, name: str) -> None:
    """Stop the kubelet's writes to the status of POD, so that it does not overwrite kubectl patch
    --subresource=status."""
    from nodenet.lab import staged_pods

    staged_pods.hold(*_pod(name, namespace, word))


@pod.command()
@click.argument("word", metavar="POD")
@namespace_option
@name_option
def release(word: str, namespace: str, name: str) -> None:
    """Let the kubelet write the status of POD again, with the real values."""
    from nodenet.lab import staged_pods

    staged_pods.release(*_pod(name, namespace, word))


@pod.command("status")
@click.argument("word", metavar="POD")
@namespace_option
@name_option
@click.option("--phase", default="", help="Pending, Running, Succeeded, Failed or Unknown.")
@click.option("--ready/--not-ready", default=None, help="The Ready condition.")
@click.option("--ip", "addresses", multiple=True, metavar="IP", help="An address; the first one is podIP.")
@click.option("--ips-of", "other", metavar="POD", help="The addresses of another pod: two pods with one address.")
def pod_status(
    word: str,
    namespace: str,
    name: str,
    phase: str,
    ready: bool | None,
    addresses: Sequence[str],
    other: str | None,
) -> None:
    """Hold POD (see hold) and write parts of its status."""
    from nodenet.lab import pods, staged_pods

    if addresses and other:
        raise click.UsageError("either --ip or --ips-of")
    if not (phase or addresses or other) and ready is None:
        raise click.UsageError("nothing to write: --phase, --ready, --not-ready, --ip or --ips-of")
    client, found = _pod(name, namespace, word)
    if other:
        addresses = pods.addresses(_pod(name, namespace, other)[1])
    staged_pods.set_status(client, found, phase=phase, ready=ready, addresses=addresses)


@pod.command("end")
@click.argument("word", metavar="POD")
@namespace_option
@name_option
@click.option(
    "--phase", type=click.Choice(["Failed", "Succeeded"]), default="Failed", show_default=True, help="How it ends."
)
def pod_end(word: str, namespace: str, name: str, phase: str) -> None:
    """End POD: its processes and network are removed, its object keeps its addresses."""
    from nodenet.lab import staged_pods

    staged_pods.end(*_pod(name, namespace, word), phase)


@trouble.command("list")
@name_option
@output_option
def list_(name: str, output: Format) -> None:
    """List the staged failures."""
    columns = [("NODE", "node"), ("KIND", "kind"), ("TROUBLE", "what"), ("SECONDS-LEFT", "secondsLeft")]
    emit(_staging(name).list(), [Column(*column) for column in columns], output)


@trouble.command()
@name_option
def clear(name: str) -> None:
    """End all staged failures."""
    _staging(name).clear()
