"""`nodenet lab exec` and `nodenet lab probe`: traffic from inside pods."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nodenet.cli.lab_common import name_option, namespace_option, say
from nodenet.cli.output import Format, emit_document, output_option
from nodenet.errors import BadInputError, CannotRunError

if TYPE_CHECKING:
    from netpolicy.matrix import Cell
    from nodenet.lab.client import LabClient
    from nodenet.lab.goals import Goal
    from nodenet.lab.pods import Port
    from nodenet.lab.probe import Outcome, Survey
    from nodenet.lab.verdict import Drop

Object = Mapping[str, Any]

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


@click.command("exec", context_settings={"allow_interspersed_args": False})
@name_option
@namespace_option
@click.option(
    "-i", "--stdin", is_flag=True, hidden=True, expose_value=False, help="For compatibility with kubectl; always on."
)
@click.option(
    "-t", "--tty", is_flag=True, hidden=True, expose_value=False, help="For compatibility with kubectl; always on."
)
@click.argument("pod")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec_(name: str, namespace: str, pod: str, command: Sequence[str]) -> None:
    """Run COMMAND in POD: `nodenet lab exec deploy/web -n shop -- curl http://api/`.

    POD is a name, the start of a name, or deploy/NAME (or sts/, ds/, job/), optionally with NS/ before it. The command
    runs with the pod's network, cgroup and environment, and its resolver and /etc/hosts. Other files
    are those of this machine. The command's exit code is returned.
    """
    from nodenet.lab import execute, find
    from nodenet.lab.client import LabClient

    words, namespace, name = _options_after_pod(list(command), namespace, name)
    if not words:
        raise click.UsageError("a command is needed: nodenet lab exec POD -- COMMAND...")
    client = LabClient(name)
    found = find.pod(client.objects("Pod"), pod, namespace)
    services = client.objects("Service")
    execute.become(name, found, services, words)


def _options_after_pod(words: list[str], namespace: str, name: str) -> tuple[list[str], str, str]:
    """Parse options between the pod and `--`, which kubectl allows too: `exec POD -n NS -- CMD`."""
    if "--" not in words:
        return words, namespace, name
    cut = words.index("--")
    head, rest = words[:cut], words[cut + 1 :]
    options = iter(head)
    for word in options:
        key, equals, value = word.partition("=")
        if key in ("-i", "-t", "-it", "-ti", "--stdin", "--tty"):
            continue
        if key not in ("-n", "--namespace", "--name"):
            return words, namespace, name
        value = value if equals else next(options, "")
        namespace, name = (namespace, value) if key == "--name" else (value, name)
    return rest, namespace, name


@click.command()
@name_option
@namespace_option
@click.option("--from", "source", metavar="NS/POD", help="Source: a pod, the start of its name, or deploy/NAME.")
@click.option("--to", "target", metavar="NS/POD|svc/NAME.NS|IP", help="Destination.")
@click.option("--port", metavar="PORT[/PROTO]", help="Default: the first one that the target declares.")
@click.option("--matrix", is_flag=True, help="Every pod to every pod.")
@click.option("--ports", metavar="80/tcp,81/udp,...", help="With --matrix: these ports instead of the declared ones.")
@click.option("--compare", is_flag=True, help="With --matrix: exit 1 if the result differs from the computed policy.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Per attempt; there are two.",
)
@output_option
def probe(
    name: str,
    namespace: str,
    source: str | None,
    target: str | None,
    port: str | None,
    matrix: bool,
    ports: str | None,
    compare: bool,
    timeout: float,
    output: Format,
) -> None:
    """Make real connections between pods, and show whether and why they are allowed.

    Exit code 0: allowed. 1: denied, or no answer although policy allows it (with --compare: a difference, or nothing
    could be compared). 3: this machine cannot make the connection.
    """
    from nodenet.lab.client import LabClient

    if matrix:
        if source or target or port:
            raise click.UsageError("--matrix goes with --ports, not with --from, --to or --port")
        _matrix(LabClient(name), ports, compare, timeout, output)
        return
    if not source or not target:
        raise click.UsageError("either --from and --to, or --matrix")
    if ports or compare:
        raise click.UsageError("--ports and --compare go with --matrix")
    _one(LabClient(name), namespace, source, target, port, timeout, output)


def _matrix(client: LabClient, ports: str | None, compare: bool, timeout: float, output: Format) -> None:
    from netpolicy.matrix import as_json
    from nodenet.cli import policy_format
    from nodenet.lab import neighbours, verdict
    from nodenet.lab import probe as probing

    asked = None if ports is None else _ports(ports)
    objects = verdict.everything(client)
    pods = [obj for obj in objects if obj["kind"] == "Pod"]
    overflows = neighbours.overflows()
    found = probing.survey(client.lab, pods, asked, timeout=timeout)
    cells = found.cells
    # A full neighbour table drops packets, which looks like a denial.
    if neighbours.overflows() > overflows:
        limit = neighbours.limit()
        say(f"note: the kernel's neighbour table was full (net.ipv4.neigh.default.gc_thresh3 is {limit}, for all")
        say("  namespaces together): some connections may look denied that policy allows")
    emit_document(as_json(cells), output, policy_format.grid(cells))
    if found.left_out:
        say(f"skipped, because they have no address: {', '.join(found.left_out)}")
    if found.unsupported:
        say(f"skipped: {', '.join(map(str, found.unsupported))}: this kernel does not support {_protocols(found)}")
    if found.unsupported and not cells:
        raise CannotRunError(
            "nothing could be probed", "only the computed policy: nodenet policy matrix --lab NAME --ports ..."
        )
    if compare:
        _compare(verdict.computed(objects, asked), found)


def _protocols(found: Survey) -> str:
    return ", ".join(sorted({port.protocol for port in found.unsupported}))


def _compare(wanted: Sequence[Cell], found: Survey) -> None:
    """Exit with 0 if there are cells and all equal the computed policy, else with 1."""
    from nodenet.lab import verdict

    unsupported = {tuple(port) for port in found.unsupported}
    differing = verdict.differences(
        [cell for cell in wanted if (cell.port, str(cell.protocol)) not in unsupported], found.cells
    )
    for sentence in differing:
        say(sentence)
    say(f"{len(found.cells)} cells, {len(differing)} differ from what policy computes")
    if not found.cells:
        say("nothing was compared: no pod with an address declares a port, or there are fewer than two pods")
    sys.exit(1 if differing or not found.cells else 0)


def _one(
    client: LabClient, namespace: str, source: str, target: str, port: str | None, timeout: float, output: Format
) -> None:
    from nodenet.lab import find, goals, verdict
    from nodenet.lab import probe as probing

    objects = verdict.everything(client)
    pods = [obj for obj in objects if obj["kind"] == "Pod"]
    start = find.pod(pods, source, namespace)
    goal = goals.resolve(objects, start, target, _ports(port)[0] if port else None, namespace)
    since = time.time_ns()
    (outcome,) = probing.probe(
        client.lab,
        start,
        [probing.Target(goal.address, goal.port.number, goal.port.protocol)],
        timeout=timeout,
        attempts=2,
    )
    if not outcome.supported:
        raise CannotRunError(
            f"{goal.port}: this kernel does not support {goal.port.protocol}: nothing was tried",
            f"only the computed policy: nodenet policy explain --lab {client.lab} "
            f"--from {source} --to {target} --port {goal.port}",
        )
    goal = goals.answered(objects, goal, outcome.answer)
    explained = None
    if not goal.note:
        explained = verdict.explanation(objects, start, goal.pod or goal.backend, goal.backend_port)
    allowed = outcome.allowed and not goal.note
    drops = [] if outcome.allowed else _drops(client, start, goal, since)
    data = {
        "from": find.full_name(start),
        "to": goal.name,
        "address": goal.address,
        "port": goal.port.number,
        "protocol": goal.port.protocol,
        "allowed": allowed,
        "verdict": "allowed" if allowed else "denied" if drops or _denies(explained) else "no answer",
        "outcome": outcome.outcome,
        "answeredBy": outcome.answer,
        "ms": outcome.ms,
        "note": goal.note or None,
        "policy": explained,
        "drops": [asdict(drop) for drop in drops],
        "circumstances": _circumstances(client, start, goal, reached=outcome.allowed or bool(drops)),
    }
    words = _words(outcome, goal.note)
    if data["verdict"] == "no answer" and not goal.note:
        outside = verdict.outside(objects, goal.backend)
        words += " (policy allows it" + ("; the lab has no route outside)" if outside else ")")
    emit_document(data, output, _text(data, words, drops))
    sys.exit(0 if allowed else 1)


def _denies(explained: Mapping[str, Any] | None) -> bool:
    return explained is not None and not explained["allowed"]


def _text(data: Mapping[str, Any], words: str, drops: Sequence[Drop]) -> str:
    from nodenet.cli import policy_format

    ends = f"{data['from']} -> {data['to']} {data['port']}/{data['protocol']} ({data['address']})"
    lines = [f"{data['verdict']}: {ends}: {words}"]
    if data["note"]:
        lines.append(f"  {data['note']}")
    if data["policy"]:
        lines += policy_format.explanation(data["policy"], 0).splitlines()[1:]
    lines += [f"  seen: {drop}" for drop in drops]
    lines += [f"  note: {sentence}" for sentence in data["circumstances"]]
    return "\n".join(lines)


def _words(outcome: Outcome, note: str) -> str:
    if outcome.outcome == "answered":
        # The lab's stand-in containers answer with the pod's name; other programs answer anything.
        by = f"answered by {outcome.answer}" if _NAME.fullmatch(outcome.answer or "") else outcome.error or "answered"
        return f"{by} in {outcome.ms:.1f} ms"
    if outcome.outcome == "refused" and not note:
        return f"refused ({outcome.error}): the packet arrived, but nothing listens there"
    return outcome.error


def _drops(client: LabClient, start: Object, goal: Goal, since: int) -> list[Drop]:
    from nodenet.lab import pods, verdict
    from nodenet.lab.files import LabFiles

    folder = LabFiles(client.lab)
    sockets = {node.name: folder.node(node.name) / "agent.sock" for node in client.plan.nodes}
    return verdict.drops(sockets, pods.addresses(start), goal.backend, goal.backend_port.number, since)


def _circumstances(client: LabClient, start: Object, goal: Goal, *, reached: bool) -> list[str]:
    """Agents of the two nodes that do not run, and, if nothing shows where the packet ended, a missing route."""
    from nodenet.lab import circumstances

    nodes = [pod["spec"]["nodeName"] for pod in (start, goal.pod) if pod and pod["spec"].get("nodeName")]
    found = list(circumstances.agents(client.control("GET", "/status")["agents"], nodes))
    if reached or not nodes or goal.note:
        return found
    elsewhere = len(nodes) > 1 and nodes[0] != nodes[1]
    through = [str(one.ip) for one in client.plan.node(nodes[1]).addresses] if elsewhere else []
    missing = circumstances.route(client.lab, nodes[0], goal.backend, through)
    return [*found, *([missing] if missing else [])]


def _ports(text: str) -> list[Port]:
    from netpolicy.matrix import parse_ports
    from nodenet.lab.pods import Port

    try:
        return [Port(port.port, str(port.protocol)) for port in parse_ports(text)]
    except ValueError as error:
        raise BadInputError(str(error), "for example 80/tcp,53/udp") from error
