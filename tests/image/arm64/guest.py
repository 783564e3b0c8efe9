"""Runs in the virtual machine, by the image's own Python: the agent starts, and a pod is attached and reachable.

Prints lines that begin with NODENET. The API server is the least that the agent needs: empty lists and one Node.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nodenet.cni.install import Options, render_conflist
from nodenet.link import netns
from nodenet.link.handle import Link

MODULES = ("llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf", "inet_diag", "udp_diag")
NODE = {
    "metadata": {"name": "vm", "resourceVersion": "1"},
    "spec": {"podCIDR": "10.77.0.0/24", "podCIDRs": ["10.77.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}
CONFIG = """node_name: vm
kubeconfig: /run/kubeconfig
"""
KUBECONFIG = """apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:8080"}}]
"""
_FINIT_MODULE = {"aarch64": 273, "x86_64": 313}


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "watch=" in self.path:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            time.sleep(600)
            return
        items = [NODE] if "/nodes" in self.path else []
        body = json.dumps({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def load_modules() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for name in MODULES:
        for path in Path("/lib/modules").rglob(f"{name}.ko"):
            fd = os.open(path, os.O_RDONLY)
            if libc.syscall(_FINIT_MODULE[platform.machine()], fd, b"", 0):
                print("NODENET module", name, os.strerror(ctypes.get_errno()))
            os.close(fd)


def attach() -> list[str]:
    """`ADD` by the installed plugin, as a runtime calls it. Returns the pod's addresses."""
    netns.create("pod")
    conflist = json.loads(render_conflist(Options()))
    conf = conflist["plugins"][0] | {"cniVersion": "1.0.0", "name": conflist["name"]}
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/pod",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/run/bin",
    }
    done = subprocess.run(
        ["/run/bin/nodenet"], input=json.dumps(conf), env=environment, capture_output=True, text=True, check=False
    )
    print("NODENET ADD", done.returncode, done.stdout[-400:].replace("\n", " "), done.stderr[-400:])
    return [entry["address"] for entry in json.loads(done.stdout)["ips"]]


def ready() -> bool:
    try:
        return urllib.request.urlopen("http://127.0.0.1:9910/readyz", timeout=5).status == 200
    except OSError:
        return False


def main() -> int:
    print("NODENET machine", platform.machine(), platform.release(), flush=True)
    load_modules()
    with Link() as link:
        link.set("lo", state="up")
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", 8080), Api).serve_forever, daemon=True).start()
    Path("/run/agent.yaml").write_text(CONFIG)
    Path("/run/kubeconfig").write_text(KUBECONFIG)
    subprocess.run(["nodenet", "node", "init", "--config", "/run/agent.yaml", "--bin-dir", "/run/bin"], check=True)
    checked = subprocess.run(["nodenet", "agent", "--check", "--config", "/run/agent.yaml"], check=False)
    print("NODENET check", checked.returncode, flush=True)
    agent = subprocess.Popen(["nodenet", "agent", "--config", "/run/agent.yaml"])
    started = time.monotonic()
    while not ready():
        if agent.poll() is not None or time.monotonic() - started > 300:
            print("NODENET agent", agent.returncode)
            return 1
        time.sleep(1)
    print("NODENET ready", flush=True)
    [address] = attach()
    # The plugin without an agent, frozen for this architecture.
    version = subprocess.run(["/run/bin/nodenet"], env={"CNI_COMMAND": "VERSION"}, input="{}", text=True, check=False)
    target = address.partition("/")[0]
    sys.path.insert(0, "/")
    from ping import ping

    print("NODENET ping", ping("/proc/1/ns/net", target), "version", version.returncode, flush=True)
    agent.terminate()
    print("NODENET end", agent.wait(60), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
