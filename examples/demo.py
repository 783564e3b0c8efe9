"""The guided tour behind `make demo`: a shop on two nodes, its traffic, what policy does to it, and how to look.

    .venv/bin/python examples/demo.py [--keep] [--name NAME]

Everything it shows is a command that it prints first, so each can be repeated by hand. It makes one lab, called `demo`,
and takes it down at the end, on Ctrl-C and after an error (not with --keep).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nodenet.cli.program import pasteable, program

ROOT = Path(__file__).resolve().parent.parent
SHOP = Path(os.path.relpath(ROOT / "examples" / "shop"))
NODENET = [sys.executable, "-m", "nodenet"]
# Seconds that the live view is given to show what has just happened.
_SETTLE = 0.7
# Seconds until a killed agent is back.
_PATIENCE = 15.0
_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def title(text: str) -> None:
    print(f"\n{_BOLD}== {text}{_PLAIN}", flush=True)


def note(text: str) -> None:
    print(f"{_DIM}   {text}{_PLAIN}", flush=True)


class Demo:
    """The acts, in order. `name` is the lab's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *words: str, expect: int = 0) -> str:
        """Print the command, run it, print what it says. Ends the demo when its exit code is not the expected one."""
        print(f"{_BOLD}$ {program()} {shlex.join(words)}{_PLAIN}", flush=True)
        done = subprocess.run([*NODENET, *words], stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        if done.returncode != expect:
            raise SystemExit(f"that should have ended with {expect}, and ended with {done.returncode}")
        return done.stdout

    def lab(self, verb: str, *words: str, expect: int = 0) -> str:
        cut = words.index("--") if "--" in words else len(words)
        return self.run("lab", verb, *words[:cut], "--name", self.name, *words[cut:], expect=expect)

    def up(self) -> None:
        title("A shop on two virtual nodes, each with a real agent; pods wired by the real CNI plugin")
        self.lab("up", "--nodes", "2", "-f", str(SHOP))
        self.lab("get", "pods", "-A", "-o", "wide")

    def services(self) -> None:
        title("Services: web calls api by its Service's name; eBPF picks a backend when the socket connects")
        script = "for i in 1 2 3 4 5 6; do curl -s --max-time 2 http://api/; echo; done"
        if shutil.which("curl") is None:
            get = "import urllib.request as r; print(r.urlopen('http://api/', timeout=2).read().decode())"
            script = f'for i in 1 2 3 4 5 6; do python3 -c "{get}"; done'
        answers = self.lab("exec", "-n", "shop", "deploy/web", "--", "sh", "-c", script).split()
        note(f"{len(set(answers))} pods answered: one on each node, and no proxy process in between")

    def policy(self) -> None:
        title("NetworkPolicy, with flows as they happen (lines with time and node are the agents')")
        with self.live():
            self.lab("probe", "--from", "shop/web", "--to", "svc/api.shop")
            time.sleep(_SETTLE)
            note("allowed: and these are the very rules")
            self.lab("probe", "--from", "attacker/mallory", "--to", "shop/db-0", expect=1)
            time.sleep(_SETTLE)
            note("denied: mallory carries the label app=web, and a policy's podSelector means its own namespace alone")
            self.lab("probe", "--from", "monitoring/collector", "--to", "svc/orders.shop", "--port", "9100")
            note("allowed by namespace and by the name of the port")
            time.sleep(_SETTLE)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """`nodenet observe --follow` beside what happens inside."""
        words = ["observe", "--lab", self.name, "--follow", "--type", "policy-verdict", "--type", "drop"]
        print(f"{_BOLD}$ {program()} {shlex.join(words)} &{_PLAIN}", flush=True)
        observer = subprocess.Popen([*NODENET, *words], stderr=subprocess.DEVNULL)
        try:
            time.sleep(_SETTLE)
            yield
        finally:
            # Not SIGINT: a demo that a shell started in the background inherits SIGINT as ignored.
            observer.terminate()
            observer.wait()

    def matrix(self) -> None:
        title("Every pod to every pod, with real traffic, compared with what policy alone computes")
        self.lab("probe", "--matrix", "--compare")

    def restart(self) -> None:
        title("kill -9 of an agent: the kernel carries on, and the next start writes only what has changed")
        pods = json.loads(self.says("get", "pods", "-n", "shop", "-o", "json"))["items"]
        web = next(pod for pod in pods if pod["metadata"]["name"].startswith("web-"))
        node = web["spec"]["nodeName"]
        self.lab("agent", "kill", node)
        fetch = "import urllib.request as r; print(r.urlopen('http://api/', timeout=2).read().decode())"
        self.lab("exec", "-n", "shop", web["metadata"]["name"], "--", "python3", "-c", fetch)
        note("a new connection through a Service, made while no agent ran on that node")
        deadline = time.monotonic() + _PATIENCE
        while self.asks("status") != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        ready = [line for line in self.says("logs", node).splitlines() if "ready after" in line]
        print(f"{_BOLD}$ {program()} lab logs {node} --name {self.name}{_PLAIN}\n...\n{ready[-1]}")

    def asks(self, verb: str, *words: str) -> int:
        command = [*NODENET, "lab", verb, "--name", self.name, *words]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def says(self, verb: str, *words: str) -> str:
        command = [*NODENET, "lab", verb, "--name", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def next(self, kept: bool) -> None:
        title("To look further")
        start = f"nodenet lab up --nodes 2 -f {SHOP} --name {self.name}"
        for line, what in (
            *(() if kept else ((start, "the same lab again, to stay"),)),
            (f"nodenet observe --lab {self.name} --follow", "all flows of all nodes"),
            (
                f"nodenet status --lab {self.name} --node node1",
                "what an agent holds (service, policy, ct, map list...)",
            ),
            (f"nodenet lab exec -n shop deploy/web --name {self.name} -- bash", "a shell inside a pod"),
            (f"export KUBECONFIG=$(nodenet lab kubeconfig --name {self.name})", "and kubectl get pods -A"),
            (f"nodenet policy explain -f {SHOP} --from shop/web --to svc/api.shop --port 80", "policy without a lab"),
            (f"nodenet lab down --name {self.name}", "take everything away"),
        ):
            print(f"  {pasteable(line):<72}  {_DIM}{what}{_PLAIN}")


def main() -> int:
    parser = argparse.ArgumentParser(description="The guided tour of nodenet.")
    parser.add_argument("--keep", action="store_true", help="leave the lab running at the end")
    parser.add_argument("--name", default="demo", help="the lab's name (default: demo)")
    options = parser.parse_args()
    demo, started = Demo(options.name), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if demo.asks("kubeconfig") != 2:
        note(f"a lab called {options.name} is there from before: it is taken down first")
        demo.lab("down")
    keep = False
    try:
        for act in (demo.up, demo.services, demo.policy, demo.matrix, demo.restart):
            act()
        demo.next(options.keep)
        keep = options.keep
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    finally:
        if not keep:
            print()
            subprocess.run([*NODENET, "lab", "down", "--name", options.name], check=False)
    print(f"\nthe tour took {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
