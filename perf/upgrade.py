"""Replaces the agents of a lab by another version and back while pods call each other, and counts the calls that fail.

    python -m perf.upgrade FROM [--rounds 2] [--seconds 10] [-o json]

FROM is the older version: a checkout, or a commit of this repository. The lab, its CNI plugin and its configuration
are those of FROM, as on a node whose DaemonSet is updated; the agents change to this tree and back, in each round.
Allowed calls must be answered, denied ones must not. Exit status 1 if one call went wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from nodenet.errors import CannotRunError, NodenetError
from nodenet.lab import names
from perf import tools
from perf.soak import world
from perf.soak.api import Api
from perf.trees import ROOT

_PROBE = ROOT / "perf" / "soak" / "probe.py"
# Python runs it before the program. An agent then imports the version that the file `agent` names.
_CHOICE = """
import pathlib, sys
if sys.orig_argv[1:4] == ["-m", "nodenet", "agent"]:
    sys.path.insert(0, pathlib.Path(__file__).with_name("agent").read_text())
"""
_LOADED = re.compile(r"datapath (\w+): (loaded|adopted)")
# Seconds until a new agent must be ready, and until the probes must have tried every target.
_READY = 60.0
_WARM = 8.0

# With it, answers pass only because their flow is known: clients accept nothing, servers call nothing.
_CLOSED = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": world.NAMESPACE},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}

Counts = Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class Result:
    """What the probes counted, and what the agents did with their datapath at each change."""

    rounds: int
    probes: dict[str, Counts] = field(default_factory=dict)
    # "12:00:03 node1 up: loaded" and so on. An agent adopts a datapath that does not differ.
    changes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def failures(result: Result) -> list[str]:
    """All failures; [] if every call went as policy says. A target that was never called is a failure too."""
    found = list(result.errors)
    for name, counts in result.probes.items():
        found += [f"{name}: {target}: {c['bad']} wrong: {c['notes'][:3]}" for target, c in counts.items() if c["bad"]]
        found += [f"{name}: {target}: never called" for target, c in counts.items() if not c["ok"] and not c["bad"]]
        if not counts:
            found.append(f"{name}: no counts")
    if len(result.changes) != 2 * result.rounds * len(world.NODES):
        found.append(f"{len(result.changes)} changes of an agent, expected {2 * result.rounds * len(world.NODES)}")
    return found


def text(result: Result, found: Sequence[str]) -> str:
    lines = [", ".join(result.changes)]
    for name, counts in result.probes.items():
        ok, bad, slow = (sum(entry[key] for entry in counts.values()) for key in ("ok", "bad", "slow"))
        lines.append(f"{name}: {ok:,} calls as policy says, {bad} not, {slow} slow, to {len(counts)} targets")
    return "\n".join(lines + ([f"FAILED: {one}" for one in found] or ["nothing got through, nothing was lost"]))


@contextmanager
def checkout(version: str) -> Iterator[Path]:
    """The folder of a version: itself, or a copy of a commit."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="nodenet-upgrade-") as folder:
        packed = subprocess.run(["git", "-C", str(ROOT), "archive", version], capture_output=True, check=False)
        if packed.returncode:
            raise CannotRunError(f"{version}: neither a folder nor a commit: {packed.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


class Lab:
    """A lab of version `old`. Its agents start with the version that was chosen last."""

    def __init__(self, name: str, old: Path, folder: Path) -> None:
        self.name = name
        self._folder = folder
        (folder / "sitecustomize.py").write_text(_CHOICE)
        self.choose(old)
        # Without the folder of the caller, which may be a checkout.
        self._environment = os.environ | {"PYTHONPATH": f"{folder}:{old}", "PYTHONSAFEPATH": "1"}

    def choose(self, tree: Path) -> None:
        (self._folder / "agent").write_text(str(tree))

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nodenet", *words]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __call__(self, *words: str) -> str:
        command = [sys.executable, "-m", "nodenet", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise CannotRunError(f"nodenet {' '.join(words[:3])}: {done.stdout.strip()} {done.stderr.strip()}")
        return done.stdout

    def change(self, tree: Path, node: str) -> str:
        """Restart a node's agent with a version. Returns what it did with the datapath: "loaded" or "adopted"."""
        self.choose(tree)
        log = names.node_dir(self.name, node) / "agent.log"
        before = len(_LOADED.findall(log.read_text()))
        self("lab", "agent", "restart", node, "--name", self.name)
        deadline = time.monotonic() + _READY
        while len(found := _LOADED.findall(log.read_text())) == before or not self._is_ready(node):
            if time.monotonic() > deadline:
                raise CannotRunError(f"{node}: the agent was not ready after {_READY:g} s, see {log}")
            time.sleep(0.2)
        done: str = found[-1][1]
        return done

    def _is_ready(self, node: str) -> bool:
        done = self("lab", "get", "nodes", "--name", self.name, "-o", "json")
        for entry in json.loads(done)["items"]:
            if entry["metadata"]["name"] == node:
                return any(c["type"] == "Ready" and c["status"] == "True" for c in entry["status"]["conditions"])
        return False


class Probe(threading.Thread):
    """A process that calls targets from a pod, and its latest counts."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True, name=name)
        self.counts: Counts = {}
        self.process = process

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.counts = json.loads(line)

    def finish(self) -> Counts:
        """End the process. Returns its last counts; {} if it has ended by itself."""
        if self.process.poll() is not None:
            return {}
        os.killpg(self.process.pid, 15)
        self.process.wait(30)
        self.join(10)
        return self.counts


def targets(api: Api, kind: str, by_packet: bool) -> list[tuple[str, str, str, int, bool]]:
    """What a client calls, in every kind of call: each server in each family and the Service, or only the Service.

    A pod whose packets to Services are translated makes no other calls. Its kernel may use one port for a call to a
    Service and for one to the backend, and the second of such connections is dropped (docs/packet-walk.md).
    """
    friendly = kind == "friend"
    service = ("service", api.service_ip(world.NAMESPACE, "server"), world.SERVICE)
    pods = [
        (f"{entry['metadata']['name']}/v{6 if ':' in one['ip'] else 4}", one["ip"], world.OPEN)
        for entry in api.pods(world.NAMESPACE)
        if entry["metadata"]["name"] in world.servers()
        for one in entry["status"]["podIPs"]
    ]
    places = [service] if by_packet else [service, *pods]
    calls = {"tcp": "TCP", "udp": "UDP"}
    if friendly:
        calls |= {"keep": "TCP", "stay": "UDP", "rare": "UDP"}
    return [
        (f"{call} {where}", call, address, ports[protocol], friendly)
        for where, address, ports in places
        for call, protocol in calls.items()
    ]


def upgrade(name: str, old: Path, rounds: int, seconds: float) -> Result:
    result = Result(rounds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodenet-upgrade-")))
        lab = Lab(name, old, folder)
        manifest = folder / "world.yaml"
        manifest.write_text(yaml.safe_dump_all(objects()))
        stack.callback(lab, "lab", "down", "--name", name)
        lab("lab", "up", "--name", name, "--nodes", "2", "--ip-family", "dual", "-f", str(manifest))
        api = Api(Path(lab("lab", "kubeconfig", "--name", name).strip()))
        probes = list(_probes(lab, api))
        for probe in probes:
            stack.callback(probe.process.kill)
            probe.start()
        time.sleep(_WARM)
        for number in range(rounds):
            for word, tree in (("up", ROOT), ("down", old)):
                for node in world.NODES:
                    done = lab.change(tree, node)
                    result.changes.append(f"{time.strftime('%H:%M:%S')} {node} {word}: {done}")
                click.echo(f"[upgrade] round {number + 1}: {', '.join(result.changes[-2:])}", err=True)
                time.sleep(seconds)
        result.probes = {probe.name: probe.finish() for probe in probes}
    return result


def _clients() -> Iterator[tuple[str, str, bool]]:
    """(pod, kind, whether its process is in no cgroup of the node)."""
    for pod, kind in world.clients():
        yield pod, kind, False
        yield f"packet-{pod}", kind, True


def objects() -> list[world.Object]:
    """The lab's objects: those of the soak, pods for the processes without a cgroup, and a policy that closes."""
    further = [
        world.pod(world.NAMESPACE, pod, pod.rpartition("-")[2], {"app": kind, "role": world.ROLES[kind][0]})
        for pod, kind, by_packet in _clients()
        if by_packet
    ]
    return [*world.start(), *further, _CLOSED]


def _probes(lab: Lab, api: Api) -> Iterator[Probe]:
    """The processes that call: in the pods, and in their networks only, where Services are translated by packet."""
    for pod, kind, by_packet in _clients():
        words = [sys.executable, "-I", "-S", str(_PROBE), json.dumps(targets(api, kind, by_packet)), "1"]
        if by_packet:
            netns = names.NETNS_ROOT / names.pod_netns(lab.name, world.NAMESPACE, pod)
            command = ["nsenter", f"--net={netns}", *words]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        else:
            process = lab.start("lab", "exec", "--name", lab.name, "-n", world.NAMESPACE, pod, "--", *words)
        yield Probe(pod, process)


@click.command()
@click.argument("version", metavar="FROM")
@click.option("--rounds", default=2, show_default=True, help="Changes to this tree and back.")
@click.option("--seconds", default=10.0, show_default=True, help="Pause after each change.")
@click.option("--name", default=f"upgrade{os.getpid()}", help="The lab's name.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write everything to this file.")
def main_command(version: str, rounds: int, seconds: float, name: str, path: Path | None) -> None:
    """Replace the agents of a lab of version FROM by this tree's and back while pods call each other."""
    tools.require("ip", "nsenter", "git", "tar")
    with checkout(version) as old:
        result = upgrade(name, old, rounds, seconds)
    found = failures(result)
    if path:
        path.write_text(json.dumps(asdict(result) | {"failures": found}, indent=1) + "\n")
    click.echo(text(result, found))
    if found:
        sys.exit(1)


def main() -> None:
    try:
        main_command.main(prog_name="python -m perf.upgrade", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"upgrade: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
