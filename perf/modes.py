"""The modes: each has a node of its own and brings the Service model into that node's kernel in its own way."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from nodenet.errors import CannotRunError
from perf import tools
from perf.load import LoadMaker, Place
from perf.node import SPARE, Node, server_addresses, set_sysctls
from perf.render import iptables, ipvs, nftables
from perf.services import TARGET_PORT, Backend, ServiceModel
from perf.tools import Cost

# At and above this size the legacy backend is used: iptables-nft 1.8.9 loads 10,000 Services of one backend in 15 s
# where legacy takes 0.6 s, its time grows with the square of their number, and its rules are slower to walk as well.
LEGACY_FROM = 10_000
SERVER_TAG, SPARE_TAG = "A", "B"


class Mode(ABC):
    """One way to balance Services, on a node of its own. `cpu` is where client and server are pinned."""

    name: ClassVar[str]
    # kube-proxy's modes need the bridge to hand its frames to netfilter: the reply passes the bridge alone.
    bridge_netfilter: ClassVar[bool] = False
    # Whether a Service's place in the model matters.
    ordered: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ()
    # Why the kernel memory of this mode cannot be told by the account of a cgroup; "" where it can.
    not_charged: ClassVar[str] = ""
    # Seconds that one run of a tool may take.
    limit: float = 600.0

    def __init__(self, stack: ExitStack, maker: LoadMaker, prefix: str, backends: int, cpu: int | None) -> None:
        self.maker = maker
        self.cpu = cpu
        self.node = Node(stack, f"{prefix}-{self.name}", backends, self.bridge_netfilter)
        self.model = ServiceModel()
        # The cgroup in which the mode's tools run; None: where the bench itself runs.
        self.account: Path | None = None
        # Sentences for the report about how this mode ran.
        self.notes: list[str] = []
        self._prepare(stack)
        stack.enter_context(maker.serving(self._place("server"), TARGET_PORT, SERVER_TAG))
        stack.enter_context(maker.serving(self._place("spare"), TARGET_PORT, SPARE_TAG))

    def _prepare(self, stack: ExitStack) -> None:  # noqa: B027  not every mode has something to prepare
        """Called once, with the node there and no server running yet."""

    @classmethod
    def check(cls) -> None:
        """Raises CannotRunError when this machine cannot run the mode."""
        tools.require(*cls.tools)

    def _place(self, pod: str) -> Place:
        return Place(self.node.pods[pod].netns, self.cgroup, self.cpu)

    @property
    def cgroup(self) -> Path | None:
        """Where the pods' processes run; None: where the bench itself runs."""
        return None

    @property
    def client(self) -> Place:
        return self._place("client")

    def program(self, model: ServiceModel) -> Cost:
        """From what the kernel holds to `model`: empty at first. The difference is written, as kube-proxy does."""
        return self.prepared(model)()

    def prepared(self, model: ServiceModel) -> Callable[[], Cost]:
        """`program` with its input made already: what a proxy's own program would take for that is not measured."""
        write = self._writer(model)

        def run() -> Cost:
            cost = write()
            self.model = model
            return cost

        return run

    def _tools(self, command: Sequence[str], text: str) -> Cost:
        return tools.measured(
            self.maker.executable,
            command,
            text,
            self.node.netns,
            self.limit,
            self.account,
            load=not self.model.services,
        )

    def settle(self) -> None:  # noqa: B027  most modes are idle when their tool has ended
        """Wait until the mode is idle: a measurement starts then."""

    @abstractmethod
    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        """What brings the kernel from `self.model` to `model` when it is called."""

    @abstractmethod
    def clear(self) -> None:
        """Take every Service out of the kernel again, so that the next `program` starts from empty."""

    def flush(self) -> None:
        """Forget connections: each block starts alike."""
        self.maker.flush_conntrack(self.node.netns)

    def version(self) -> str:
        """What programmed the kernel."""
        return ""

    def kernel_bytes(self) -> int | None:
        """Memory that the kernel tells as this mode's own; None where only the account of a cgroup can tell it."""
        return None


class Direct(Mode):
    """The limit: pod to pod on a clean twin, with nothing programmed."""

    name = "direct"

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        return Cost

    def clear(self) -> None:
        self.model = ServiceModel()

    def flush(self) -> None:
        """There is no conntrack on this node: nothing asks for it."""


class Iptables(Mode):
    name = "iptables"
    bridge_netfilter = True
    ordered = True
    tools = ("iptables-nft-restore", "iptables-legacy-restore")
    # Services of the largest model of the run: a curve over their number is of one variant.
    largest: ClassVar[int] = 0

    def _prepare(self, stack: ExitStack) -> None:
        # Before the first program it is not known how many Services come.
        self._tool = ""

    def choose(self, services: int) -> None:
        """The variant for this run. The other one's rules are gone: `clear` comes first."""
        variant = "legacy" if max(services, self.largest) >= LEGACY_FROM else "nft"
        if variant == "legacy" and self._tool != "iptables-legacy-restore":
            self.notes.append(
                f"iptables-legacy, since {LEGACY_FROM:,} Services or more were asked for: iptables-nft is slower "
                "there, both to load and to walk (perf/README.md)"
            )
        self._tool = f"iptables-{variant}-restore"

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        old = self.model if self.model.services else None
        if old is None:
            self.choose(model.size)
            self._restore(iptables.jumps())
        text = iptables.render(model, old)
        return lambda: self._restore(text)

    def _restore(self, text: str) -> Cost:
        return self._tools([self._tool, "--noflush", "--counters", "-w", "5"], text)

    def clear(self) -> None:
        if self._tool:
            empty = "*nat\nCOMMIT\n*filter\nCOMMIT\n"
            tools.run([self._tool, "-w", "5"], empty, self.node.netns)
        self.model = ServiceModel()

    def version(self) -> str:
        return tools.output([self._tool or "iptables-nft-restore", "--version"]).strip()


class Nftables(Mode):
    name = "nftables"
    bridge_netfilter = True
    tools = ("nft",)

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        old = self.model if self.model.services else None
        text = nftables.render(model, old)
        # A later sync's work: deleted apart, and not part of the time until the change is in force.
        later = nftables.stale_chains(model, old) if old else ""

        def write() -> Cost:
            cost = self._nft(text)
            self._nft(later)
            return cost

        return write

    def _nft(self, text: str) -> Cost:
        return self._tools(["nft", "-f", "-"], text) if text else Cost()

    def clear(self) -> None:
        self._nft(f"add table {nftables.TABLE}\ndelete table {nftables.TABLE}\n")
        self.model = ServiceModel()

    def version(self) -> str:
        return tools.output(["nft", "--version"]).strip()


class Ipvs(Mode):
    name = "ipvs"
    bridge_netfilter = True
    tools = ("ipvsadm", "ipset", "iptables-nft-restore", "ip")
    not_charged = "no exact figure: the kernel does not charge IPVS's own tables to a cgroup"

    @classmethod
    def check(cls) -> None:
        super().check()
        if not Path("/proc/net/ip_vs").exists():
            tools.output(["sh", "-c", "modprobe ip_vs 2>/dev/null || true"])
        if not Path("/proc/net/ip_vs").exists():
            raise CannotRunError(
                "this kernel has no ip_vs", "--vm KERNEL runs it in a virtual machine with a kernel that has it"
            )

    def _prepare(self, stack: ExitStack) -> None:
        set_sysctls(self.node.netns, {"net.ipv4.vs.conntrack": 1})

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        old = self.model if self.model.services else None
        inputs = [
            (["ip", "-batch", "-"], ipvs.devices(model, old)),
            (["ipset", "restore", "-exist"], ipvs.sets(model, old)),
            (["ipvsadm", "-R"], ipvs.virtual_servers(model, old)),
        ]
        if old is None:
            inputs.append((["iptables-nft-restore", "--noflush"], ipvs.rules()))
        return lambda: sum((self._tools(command, text) for command, text in inputs if text), Cost())

    def clear(self) -> None:
        netns = self.node.netns
        tools.run(["ipvsadm", "-C"], netns=netns)
        tools.run(["iptables-nft-restore"], "*nat\nCOMMIT\n", netns)
        tools.run(["sh", "-c", f"ipset destroy; ip link del {ipvs.DEVICE} 2>/dev/null || true"], netns=netns)
        self.model = ServiceModel()

    def version(self) -> str:
        return tools.output(["sh", "-c", "ipvsadm --version 2>&1 | head -n 1"]).strip()


def real_backends(count: int) -> tuple[Backend, ...]:
    """The server pod, by as many addresses as a Service has backends."""
    return tuple(Backend(address) for address in server_addresses(count))


def spare_backend() -> Backend:
    return Backend(SPARE)


def timed_update(mode: Mode, model: ServiceModel, place: str, tag: str, limit: float) -> tuple[float, Cost]:
    """(seconds from the change until the first connection reaches the server `tag`, what the change cost)."""
    service = model.at(place)
    change = mode.prepared(model)
    mode.settle()
    with mode.maker.until(mode.client, service.cluster_ip, service.port, tag, limit) as waiter:
        started = time.monotonic_ns()
        cost = change()
        return waiter.seconds_since(started), cost
