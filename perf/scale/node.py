"""One agent in its own namespace, with the API server of the measurement, and what the kernel says about the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from nodenet.errors import CannotRunError
from perf import tools
from perf.node import run_ip
from perf.scale.objects import World, node_address, node_name

_READY_SECONDS = 300.0
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_METRICS = "127.0.0.1:9909"


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process: CPU seconds, resident bytes now and at most, kernel memory of its BPF maps in bytes."""

    cpu: float
    rss: int
    peak: int
    maps: int


class Agent:
    """A running agent and its API server. `netns`: the namespace of both."""

    def __init__(self, netns: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self._netns = netns
        self._port = port
        self._process = process
        self._started = time.monotonic()

    def wait_ready(self) -> float:
        """Seconds from the start until the agent is ready: everything is in the kernel."""
        while self._http("http://127.0.0.1:9910/readyz", fail=False) is None:
            if self._process.poll() is not None:
                raise CannotRunError(f"the agent ended with {self._process.returncode}")
            if time.monotonic() - self._started > _READY_SECONDS:
                raise CannotRunError(f"the agent is not ready after {_READY_SECONDS:g} s")
            time.sleep(0.1)
        return time.monotonic() - self._started

    def usage(self) -> Usage:
        folder = Path("/proc") / str(self._process.pid)
        words = (folder / "stat").read_text().rpartition(")")[2].split()
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        rss, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return Usage((int(words[11]) + int(words[12])) * _TICK, rss, peak, _map_bytes(folder / "fdinfo"))

    def events(self, kind: str) -> int:
        """The number of watch events of a kind that the agent has processed."""
        wanted = f'nodenet_api_watch_events_total{{kind="{kind}"}}'
        text = self._http(f"http://{_METRICS}/metrics") or ""
        return next((int(float(line.split()[1])) for line in text.splitlines() if line.startswith(wanted)), 0)

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        """What the API server has sent and was asked for."""
        found: dict[str, dict[str, int]] = json.loads(self._http(f"http://127.0.0.1:{self._port}/perf/counters") or "")
        return found

    def change(self, what: str, count: int, round_: int) -> None:
        """Let the API server send so many events, and wait until it has."""
        query = f"what={what.replace(' ', '+')}&count={count}&round={round_}"
        self._http(f"http://127.0.0.1:{self._port}/perf/change?{query}", "--request", "POST")

    def _http(self, url: str, *options: str, fail: bool = True) -> str | None:
        command = ["curl", "--silent", "--fail", "--max-time", "60", *options, url]
        try:
            return tools.output(command, self._netns)
        except CannotRunError:
            if fail:
                raise
            return None


def _map_bytes(fdinfo: Path) -> int:
    """The memory that the kernel accounts to the BPF maps that a process has open. Each map counts once."""
    found: dict[str, int] = {}
    for path in fdinfo.iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:
            # Closed since the folder was read.
            continue
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if "memlock" in lines and "map_id" in lines:
            found[lines["map_id"]] = int(lines["memlock"])
    return sum(found.values())


@contextmanager
def agent(folder: Path, world: World, config: Mapping[str, Any], streams: bool) -> Iterator[Agent]:
    """Start an API server with this world and an agent, both without earlier state. `folder` has a BPF file system."""
    with ExitStack() as stack:
        netns = f"scale{len(list(folder.glob('run*')))}"
        run = folder / f"run-{netns}"
        run.mkdir()
        tools.run(["ip", "netns", "add", netns])
        stack.callback(tools.run, ["ip", "netns", "del", netns])
        uplink = "link add eth0 up type veth peer name peer0\nlink set peer0 up\n"
        run_ip(netns, f"link set lo up\n{uplink}addr add {node_address(0)}/16 dev eth0\n")
        arguments = [json.dumps(asdict(world)), *([] if streams else ["--pages"])]
        server = _start(stack, netns, [sys.executable, "-m", "perf.scale.server", *arguments])
        port = int(_line(server))
        files = _config(run, folder / "bpf" / netns, port, config)
        log = stack.enter_context((run / "agent.log").open("wb"))
        process = _start(stack, netns, [sys.executable, "-m", "nodenet", "agent", "--config", str(files)], log)
        try:
            yield Agent(netns, port, process)
        except CannotRunError as error:
            last = (run / "agent.log").read_text().strip().splitlines()[-3:]
            raise CannotRunError(f"{error}: {' | '.join(last)}") from error


def _start(stack: ExitStack, netns: str, command: list[str], log: Any = None) -> subprocess.Popen[bytes]:
    output = subprocess.PIPE if log is None else log
    process = subprocess.Popen([*tools.inside(netns), *command], stdout=output, stderr=log)
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise CannotRunError("the API server of the measurement did not start")
    return line


def _config(run: Path, pins: Path, port: int, config: Mapping[str, Any]) -> Path:
    cluster = {"name": "scale", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [cluster],
        "users": [{"name": "agent", "user": {}}],
        "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": "agent"}}],
        "current-context": "scale",
    }
    (run / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    settings = {
        "node_name": node_name(0),
        "kubeconfig": str(run / "kubeconfig"),
        "run_dir": str(run),
        "bpffs": str(pins),
        "metrics_address": _METRICS,
        **config,
    }
    (run / "agent.yaml").write_text(yaml.safe_dump(settings))
    return run / "agent.yaml"
