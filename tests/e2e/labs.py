"""A lab under test, used as a person would: through the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODENET = [sys.executable, "-m", "nodenet"]
ROOT = Path(__file__).parents[2]
SHOP = ROOT / "examples" / "shop"
Run = subprocess.CompletedProcess[str]


def nodenet(*words: str | Path, check: bool = True, **options: Any) -> Run:
    """`nodenet WORDS`, to its end."""
    done = subprocess.run(
        [*NODENET, *map(str, words)], capture_output=True, text=True, timeout=120, check=False, **options
    )
    if check and done.returncode != 0:
        raise AssertionError(f"nodenet {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def unique(word: str) -> str:
    """A lab's name that no other run of the tests uses."""
    return f"t{os.getpid()}-{word}"


@dataclass(frozen=True)
class Lab:
    """A running lab of this name."""

    name: str

    def __call__(self, *words: str | Path, check: bool = True) -> Run:
        """`nodenet lab WORDS --name NAME`; options before the command of `exec` are the caller's."""
        verb, *rest = words
        return nodenet("lab", verb, "--name", self.name, *rest, check=check)

    def json(self, *words: str | Path, check: bool = True) -> Any:
        return json.loads(self(*words, "-o", "json", check=check).stdout)

    def pods(self, namespace: str, prefix: str = "") -> list[dict[str, Any]]:
        items = self.json("get", "pods", "-n", namespace)["items"]
        return [pod for pod in items if pod["metadata"]["name"].startswith(prefix)]

    def exec(self, namespace: str, pod: str, *command: str, check: bool = True) -> Run:
        return self("exec", "-n", namespace, pod, "--", *command, check=check)

    def fetch(self, namespace: str, pod: str, url: str) -> str:
        """What an HTTP GET from inside the pod answers; "" when it does not within two seconds."""
        code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=2).read().decode())"
        return self.exec(namespace, pod, "python3", "-c", code, url, check=False).stdout.strip()

    def agent_log(self, node: str) -> str:
        return self("logs", node).stdout


@contextmanager
def running(word: str, *options: str | Path) -> Iterator[Lab]:
    """A lab of its own, taken down afterwards whatever happened. Without DNS pods unless `options` ask for them."""
    name = unique(word)
    try:
        nodenet("lab", "up", "--name", name, *options, *(() if "--dns" in options else ("--no-dns",)))
        yield Lab(name)
    finally:
        nodenet("lab", "down", "--name", name)


def until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """For what only another process can tell."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def traces(name: str) -> list[str]:
    """Everything on this machine that carries the lab's name."""
    found = [f"netns {p.name}" for p in Path("/run/netns").glob(f"nn.{name}.*")]
    found += [f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    # Not glob, which fails when a group of another program disappears meanwhile.
    found += [f"cgroup {folder}" for folder, *_ in os.walk("/sys/fs/cgroup") if folder.endswith(f"/nodenet.{name}")]
    found += [f"folder {p}" for p in Path("/run/nodenet/lab").glob(name)]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if name in command:
                found.append(f"process {command}")
    return found


def host() -> dict[str, object]:
    """What of the host's own must never change."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    sysctls = {
        str(path): path.read_text()
        for pattern in ("ipv4/ip_forward", "ipv4/conf/*/rp_filter", "ipv6/conf/*/forwarding", "ipv6/conf/*/accept_dad")
        for path in Path("/proc/sys/net").glob(pattern)
    }
    bpffs = sorted(str(path) for path in Path("/sys/fs/bpf").glob("*"))
    return {"links": sorted(link["ifname"] for link in links), "routes": routes, "sysctls": sysctls, "bpffs": bpffs}
