"""The modes. Each has its own node and programs the Service model into that node's kernel in its own way."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from nodenet.errors import CannotRunError
from nodenet.kubeproxy import iptables, ipvs, nftables
from nodenet.kubeproxy.model import Backend, Services
from perf import tools
from perf.load import LoadMaker, Place
from perf.node import SPARE, Node, server_addresses, set_sysctls
from perf.services import NETWORK, TARGET_PORT, ServiceModel
from perf.tools import Cost

# From this number of Services on, the legacy backend of iptables is used. iptables-nft 1.8.9 loads 10,000 Services with
# one backend in 15 s, legacy in 0.6 s. The time of iptables-nft grows with the square of the number, and packets take
# longer to pass its rules.
LEGACY_FROM = 10_000
SERVER_TAG, SPARE_TAG = "A", "B"


class Mode(ABC):
    """One implementation of Services, on its own node. `cpu`: the CPU to which client and server are pinned."""

    name: ClassVar[str]
    # kube-proxy's modes need the bridge to pass its frames to netfilter, because replies cross only the bridge.
    bridge_netfilter: ClassVar[bool] = False
    # True if a Service's position in the model affects its cost.
    ordered: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ()
    # Why a cgroup's charge does not give the kernel memory of this mode; "" if it does.
    not_charged: ClassVar[str] = ""
    # Seconds that one run of a tool may take.
    limit: float = 600.0

    def __init__(self, stack: ExitStack, maker: LoadMaker, prefix: str, backends: int, cpu: int | None) -> None:
        self.maker = maker
        self.cpu = cpu
        self.node = Node(stack, f"{prefix}-{self.name}", backends, self.bridge_netfilter)
        self.model = ServiceModel()
        # The cgroup in which the mode's tools run; None: the benchmark's own.
        self.account: Path | None = None
        # Remarks about this mode for the report.
        self.notes: list[str] = []
        self._prepare(stack)
        stack.enter_context(maker.serving(self._place("server"), TARGET_PORT, SERVER_TAG))
        stack.enter_context(maker.serving(self._place("spare"), TARGET_PORT, SPARE_TAG))

    def _prepare(self, stack: ExitStack) -> None:  # noqa: B027  not every mode has something to prepare
        """Called once, after the node was made and before a server is started."""

    @classmethod
    def check(cls) -> None:
        """Raises CannotRunError if this machine cannot run the mode."""
        tools.require(*cls.tools)

    def _place(self, pod: str) -> Place:
        return Place(self.node.pods[pod].netns, self.cgroup, self.cpu)

    @property
    def cgroup(self) -> Path | None:
        """The cgroup of the pods' processes; None: the benchmark's own."""
        return None

    @property
    def programmed(self) -> Services | None:
        """The Services in the kernel; None if it has no rules of this mode."""
        return self.model.services or None

    @property
    def client(self) -> Place:
        return self._place("client")

    def program(self, model: ServiceModel) -> Cost:
        """Change the kernel from the current model, at first an empty one, to `model`. Writes only the difference, as
        kube-proxy does."""
        return self.prepared(model)()

    def prepared(self, model: ServiceModel) -> Callable[[], Cost]:
        """Like `program`, but prepares the input first, so that the time for that is not measured."""
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
        """Wait until the mode is idle, before a measurement starts."""

    @abstractmethod
    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        """Prepare the input of the change from `self.model` to `model`. Returns the function that makes the
        change."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all Services from the kernel, so that the next `program` starts from empty."""

    def flush(self) -> None:
        """Delete all conntrack entries, so that all blocks start in the same state."""
        self.maker.flush_conntrack(self.node.netns)

    def version(self) -> str:
        """The name and version of the tool that programs the kernel."""
        return ""

    def kernel_bytes(self) -> int | None:
        """Memory that the kernel reports for this mode; None if it can only be measured by a cgroup's charge."""
        return None


class Direct(Mode):
    """The limit: pod to pod on an identical node without any programs or rules."""

    name = "direct"

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        return Cost

    def clear(self) -> None:
        self.model = ServiceModel()

    def flush(self) -> None:
        """Nothing to do: this node does not use conntrack."""


class Iptables(Mode):
    name = "iptables"
    bridge_netfilter = True
    ordered = True
    tools = ("iptables-nft-restore", "iptables-legacy-restore")
    # The number of Services in the largest model of the run. It decides the variant, so that a curve shows only one.
    largest: ClassVar[int] = 0

    def _prepare(self, stack: ExitStack) -> None:
        # The number of Services is not known before the first `program`.
        self._tool = ""

    def choose(self, services: int) -> None:
        """Choose the variant for this run. Call `clear` first, to remove the rules of the other variant."""
        variant = "legacy" if max(services, self.largest) >= LEGACY_FROM else "nft"
        if variant == "legacy" and self._tool != "iptables-legacy-restore":
            self.notes.append(
                f"iptables-legacy, since {LEGACY_FROM:,} Services or more were asked for: iptables-nft is slower "
                "there, both to load and to walk (perf/README.md)"
            )
        self._tool = f"iptables-{variant}-restore"

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        old = self.programmed
        if old is None:
            self.choose(model.size)
            # These few chains and rules are the same for every model, so they are not part of the measured change.
            self._restore(iptables.jumps(NETWORK))
        text = iptables.render(NETWORK, model.services, old)
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
        old = self.programmed
        text = nftables.render(NETWORK, model.services, old)
        # kube-proxy deletes stale chains in a later sync, so this is not part of the time until the change is in force.
        later = nftables.stale_chains(NETWORK, model.services, old) if old else ""

        def write() -> Cost:
            cost = self._nft(text)
            self._nft(later)
            return cost

        return write

    def _nft(self, text: str) -> Cost:
        return self._tools(["nft", "-f", "-"], text) if text else Cost()

    def clear(self) -> None:
        table = nftables.table(NETWORK)
        self._nft(f"add table {table}\ndelete table {table}\n")
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
        old = self.programmed
        inputs = [
            (["ip", "-batch", "-"], ipvs.devices(NETWORK, model.services, old)),
            (["ipset", "restore", "-exist"], ipvs.sets(NETWORK, model.services, old)),
            (["ipvsadm", "-R"], ipvs.virtual_servers(NETWORK, model.services, old)),
        ]
        if old is None:
            inputs.append((["iptables-nft-restore", "--noflush"], ipvs.rules(NETWORK)))
        return lambda: sum((self._tools(command, text) for command, text in inputs if text), Cost())

    def clear(self) -> None:
        netns = self.node.netns
        tools.run(["ipvsadm", "-C"], netns=netns)
        tools.run(["iptables-nft-restore"], "*nat\nCOMMIT\n*filter\nCOMMIT\n", netns)
        tools.run(["sh", "-c", f"ipset destroy; ip link del {ipvs.DEVICE} 2>/dev/null || true"], netns=netns)
        self.model = ServiceModel()

    def version(self) -> str:
        return tools.output(["sh", "-c", "ipvsadm --version 2>&1 | head -n 1"]).strip()


def real_backends(count: int) -> tuple[Backend, ...]:
    """`count` backends, which are addresses of the server pod."""
    return tuple(Backend(address, TARGET_PORT, here=True) for address in server_addresses(count))


def spare_backend() -> Backend:
    return Backend(SPARE, TARGET_PORT, here=True)


def timed_update(mode: Mode, model: ServiceModel, place: str, tag: str, limit: float) -> tuple[float, Cost]:
    """Change to `model`. Returns (seconds until the first connection reaches the server `tag`, cost of the change)."""
    service = model.at(place)
    change = mode.prepared(model)
    mode.settle()
    with mode.maker.until(mode.client, service.cluster_ip, service.port, tag, limit) as waiter:
        started = time.monotonic_ns()
        cost = change()
        return waiter.seconds_since(started), cost
