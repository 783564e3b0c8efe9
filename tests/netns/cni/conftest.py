"""A throwaway node: a network namespace, folders, and a CNI configuration. The host's own namespace is not touched."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import alone, bundle
from nodenet.cni.attach import Step
from nodenet.cni.install import place
from nodenet.cni.plugin import Plugin
from nodenet.cni.protocol import Reply
from nodenet.cni.request import parse
from nodenet.link import netns
from nodenet.link.handle import Link

V4 = [{"subnet": "10.77.0.0/24"}]
V6 = [{"subnet": "fd77::/64"}]


@dataclass
class World:
    """One node with its pods."""

    node: Path
    folder: Path
    program: Path | None = None
    pods: list[Path] = field(default_factory=list)
    # `call` starts the executable, which does it alone: nothing else shows what the frozen file lacks.
    frozen: bool = False

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def leases(self) -> Path:
        return self.folder / "leases"

    def pod(self) -> str:
        """A new pod's namespace."""
        self.pods.append(netns.create(f"nntest-{uuid.uuid4().hex[:8]}"))
        return str(self.pods[-1])

    def conf(self, ranges: list[Any] | None = None, **keys: Any) -> bytes:
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": ranges or [V4, V6]}
        base = {"cniVersion": "1.1.0", "name": "net", "type": "nodenet", "bridge": "nn0", "isDefaultGateway": True}
        return json.dumps(base | {"agentSocket": str(self.run_dir / "cni.sock"), "ipam": ipam} | keys).encode()

    def env(self, verb: str, container: str, pod: str, args: str = "") -> dict[str, str]:
        pod_args = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container};K8S_POD_UID=u-{container}"
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": pod,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"{pod_args};{args}" if args else pod_args,
            "CNI_PATH": "/opt/cni/bin",
        }

    def call(self, verb: str, container: str, pod: str = "", conf: bytes | None = None, args: str = "") -> Reply:
        """One verb without an agent: in this process, or by the frozen file."""
        if self.frozen:
            environment = self.env(verb, container, pod, args)
            # A node's environment and locale, whatever they are.
            environment |= {"PATH": os.environ["PATH"], "LC_ALL": "de_DE.ISO-8859-15", "PYTHONUTF8": "0"}
            done = netns.run(
                self.node, [self.alone], env=environment, input=conf or self.conf(), capture_output=True, timeout=60
            )
            assert b"Traceback" not in done.stderr, done.stderr
            return Reply(done.returncode, done.stdout)
        return netns.call(self.node, alone.run, self.env(verb, container, pod, args), conf or self.conf())

    @property
    def alone(self) -> Path:
        """What the executable starts where no agent listens."""
        assert self.program is not None
        (found,) = self.program.parent.glob(".nodenet-*/alone")
        return found

    def failing(self, verb: str, container: str, pod: str, step: Step, conf: bytes | None = None) -> Reply:
        """One verb with something happening before each step."""

        def inside() -> Reply:
            plugin = Plugin(step=step)
            try:
                return plugin.run(parse(self.env(verb, container, pod), conf or self.conf()))
            finally:
                plugin.close()

        return netns.call(self.node, inside)

    def execute(
        self, verb: str, container: str, pod: str = "", conf: bytes | None = None, program: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """The real executable, as a runtime calls it."""
        environment, program = self.env(verb, container, pod), program or self.program
        assert program is not None
        return netns.run(
            self.node, [program], env=environment, input=conf or self.conf(), capture_output=True, timeout=30
        )

    def interfaces(self, where: str | Path) -> list[str]:
        # In a thread of its own: tests call this from a running event loop too.
        def inside() -> list[str]:
            with Link() as link:
                return [entry.name for entry in link.all()]

        return netns.call(where, inside)

    def left(self) -> list[str]:
        """What attachments left behind: interfaces of the node, leases, records."""
        folder = self.leases / "net"
        addresses = [path.name for path in folder.iterdir()] if folder.exists() else []
        found = [name for name in self.interfaces(self.node) if name not in ("lo", "nn0")]
        found += [
            name for name in addresses if name not in ("lock", ".boot") and not name.startswith("last_reserved_ip.")
        ]
        endpoints = self.run_dir / "endpoints"
        found += [path.name for path in endpoints.rglob("*") if path.name not in ("ids", "last")]
        return found + netns.call(self.node, self._tables)

    @staticmethod
    def _tables() -> list[str]:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "nodenet-" in line]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory, bpf_cache: Path) -> Path:
    """The executable as it is on a node."""
    folder = tmp_path_factory.mktemp("cni-bin")
    place(folder, bundle.build(bpf_cache))
    return folder / "nodenet"


# Tests that call verbs without an agent run twice: on the source, and on the frozen file.
_TWICE = (
    "test_cni_alone",
    "test_verbs",
    "test_keys",
    "test_delegation",
    "test_moved_over",
    "test_chain",
    "test_second_network",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # What a test changes in this process, the frozen file does not see.
    wanted = metafunc.module.__name__.rpartition(".")[2] in _TWICE and "monkeypatch" not in metafunc.fixturenames
    if wanted and "world" in metafunc.fixturenames:
        metafunc.parametrize("world", ["source", "frozen"], indirect=True)


@pytest.fixture
def world(tmp_path: Path, program: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    frozen = getattr(request, "param", "source") == "frozen"
    made = World(netns.create(f"nntest-{uuid.uuid4().hex[:8]}"), tmp_path, program, frozen=frozen)
    try:
        yield made
    finally:
        for path in (made.node, *made.pods):
            netns.delete(path)


def ping(source: str | Path, target: str, timeout: float = 2.0) -> bool:
    """One ICMP echo from a namespace; whether the answer came."""
    family, protocol = (socket.AF_INET6, 58) if ip_address(target).version == 6 else (socket.AF_INET, 1)
    request, reply = (128, 129) if protocol == 58 else (8, 0)
    packet = struct.pack("!BBHHH", request, 0, 0, 0x6E6E, 1)
    total = sum(struct.unpack("!4H", packet))
    packet = struct.pack("!BBHHH", request, 0, ~total & 0xFFFF, 0x6E6E, 1)
    with netns.open_socket(source, family, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(timeout)
        try:
            sock.sendto(packet, (target, 0))
            while True:
                data, peer = sock.recvfrom(2048)
                offset = 0 if protocol == 58 else 20
                if data[offset] == reply and peer[0] == target:
                    return True
        except OSError:
            return False


@pytest.fixture
def pinging() -> Any:
    """The function `ping(source, target)`."""
    return ping
