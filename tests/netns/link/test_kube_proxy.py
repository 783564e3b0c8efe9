"""kube-proxy's rules, as it writes them: found in every mode, removed exactly, and nothing else is touched."""

from __future__ import annotations

import errno
import socket
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from nodenet.agent.datapath import refuse_kube_proxy
from nodenet.agent.foreign_rules import ForeignRules
from nodenet.config import Config
from nodenet.errors import CannotRunError
from nodenet.kubeproxy import iptables as iptables_mode
from nodenet.kubeproxy import nftables as nftables_mode
from nodenet.kubeproxy.model import Backend, Network, Service
from nodenet.link import chains, egress, iptables, kube_proxy, netlink, nft, nftables, sysctl
from nodenet.link import netns as namespaces
from nodenet.link.handle import LinkError

pytestmark = pytest.mark.kernel

NET = Network(4, "10.128.0.0/9", "10.96.0.0/12", localhost_node_ports=True)
WEB = Service("web", "10.96.0.11", (Backend("10.128.0.1", 80), Backend("10.128.0.2", 80)), "test", 80, "http")
DNS = Service("dns", "10.96.0.12", (Backend("10.128.0.4", 53),), "test", 53, "dns", "udp")
MODEL = (WEB, DNS, Service("empty", "10.96.0.13", (), "test", 80, "http"))
# What others have on such a node: an administrator, Docker, the kubelet, and a comment with kube-proxy's words.
FOREIGN = """*filter
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j DOCKER-USER
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block -j KUBE-SERVICES" -j DROP
-A DOCKER-USER -j RETURN
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:MINE - [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j MINE
-A MINE -p tcp -j REDIRECT --to-ports 80
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
"""
FOREIGN6 = FOREIGN.replace("127.0.0.0/8", "::1/128")
BACKENDS = ["iptables-nft", "iptables-legacy"]


@pytest.fixture
def node(two: tuple[str, str]) -> str:
    return two[0]


def run(node: str, command: list[str], given: str = "") -> str:
    done = namespaces.run(node, command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return str(done.stdout)


def saved(node: str, backend: str) -> dict[str, list[str]]:
    """Chains and rules of both IP versions, without counters, by table."""
    found = {}
    for program in (backend, backend.replace("ip", "ip6", 1)):
        table = ""
        for line in run(node, [f"{program}-save"]).splitlines():
            if line.startswith("*"):
                table = f"{program} {line}"
                found[table] = []
            elif line.startswith(":"):
                found[table].insert(0, line.partition("[")[0])
            elif line.startswith("-"):
                found[table].append(line)
    return {table: sorted(rules) for table, rules in found.items()}


def restore(node: str, backend: str, rules: str) -> None:
    run(node, [f"{backend}-restore", "--noflush"], rules)


def program(node: str, backend: str) -> None:
    """kube-proxy starts on a node with foreign rules."""
    for rules in (iptables_mode.jumps(NET), iptables_mode.render(NET, MODEL)):
        # This chain is the kubelet's. kube-proxy writes it too, and leaves it when it cleans up.
        restore(node, backend, "".join(line for line in rules.splitlines(True) if "KUBE-FIREWALL" not in line))


def names(node: str) -> list[str]:
    return [str(found) for found in namespaces.call(node, kube_proxy.find)]


def remove_all(node: str) -> None:
    for found in namespaces.call(node, kube_proxy.find):
        namespaces.call(node, kube_proxy.remove, found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_chains_are_found_and_only_they_go(node: str, backend: str) -> None:
    restore(node, backend, FOREIGN)
    restore(node, backend.replace("ip", "ip6", 1), FOREIGN6)
    before = saved(node, backend)
    assert names(node) == []
    program(node, backend)
    found = names(node)
    assert len(found) == 2
    for table in ("filter", "nat"):
        assert any(f"table {table} (" in name and "KUBE-" in name for name in found)
    assert saved(node, backend) != before
    remove_all(node)
    assert names(node) == []
    assert saved(node, backend) == before


def test_both_backends_and_both_versions_at_once(node: str) -> None:
    for backend in BACKENDS:
        program(node, backend)
        rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
        restore(node, backend.replace("ip", "ip6", 1), rules)
    assert len(names(node)) == 6
    remove_all(node)
    assert names(node) == []
    for backend in BACKENDS:
        assert "KUBE-S" not in str(saved(node, backend))


def test_more_chains_than_a_default_send_buffer_holds(node: str) -> None:
    """One transaction of more than 400 KB; the default buffer has 208 KiB."""
    chains = [f"KUBE-SVC-{number:016}" for number in range(4000)]
    lines = ["*nat", *(f":{name} - [0:0]" for name in ("KUBE-SERVICES", *chains)), "-A PREROUTING -j KUBE-SERVICES"]
    lines += [f"-A KUBE-SERVICES -d 10.96.0.1/32 -j {name}" for name in chains]
    restore(node, "iptables-nft", "\n".join([*lines, "COMMIT", ""]))
    (found,) = namespaces.call(node, kube_proxy.find)
    assert len(found.chains) == 4001
    namespaces.call(node, kube_proxy.remove, found)
    assert names(node) == []
    assert "-A PREROUTING" not in run(node, ["iptables-nft-save"])


def test_a_transaction_that_does_not_fit_is_named(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to exceed net.core.wmem_max."""
    monkeypatch.setattr(netlink, "_SO_SNDBUFFORCE", socket.SO_SNDBUF)
    largest = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())
    excluded = [ip_network((0x0A000000 + 2 * number, 32)) for number in range(largest // 30)]
    plan = egress.Plan(4, (ip_network("10.255.0.0/24"),), tuple(excluded), 32768, 65535)
    with pytest.raises(LinkError, match=r"cannot masquerade IPv4: .*bytes at once.*raise net.core.wmem_max"):
        namespaces.call(node, egress.apply, plan)
    assert namespaces.call(node, egress.digest, 4) == b""


def test_nftables_mode(node: str) -> None:
    foreign = "table ip mine { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }"
    run(node, ["nft", "-f", "-"], foreign)
    before = run(node, ["nft", "list", "ruleset"])
    run(node, ["nft", "-f", "-"], nftables_mode.base(NET))
    run(node, ["nft", "-f", "-"], nftables_mode.render(NET, MODEL))
    assert names(node) == ["nf_tables: table ip kube-proxy"]
    remove_all(node)
    assert run(node, ["nft", "list", "ruleset"]) == before


def test_ipvs_interface(node: str) -> None:
    # A kernel for tests may have no dummy interfaces.
    subprocess.run(["ip", "-n", node, "link", "add", kube_proxy.DEVICE, "type", "bridge"], check=True)
    assert names(node) == ["interface kube-ipvs0 (IPVS)"]
    remove_all(node)
    assert names(node) == []


def test_virtual_servers_of_the_interface_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["-A -t 10.96.0.1:443 -s rr", "-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 1", "-A -u [fd00::a]:53 -s rr",
             "-A -t 192.0.2.1:80 -s wlc"]  # fmt: skip
    monkeypatch.setattr(kube_proxy, "_lines", lambda command: lines)
    assert kube_proxy._servers(["10.96.0.1", "fd00::a"]) == [("-t", "10.96.0.1:443"), ("-u", "[fd00::a]:53")]
    assert kube_proxy._servers([]) == []


def refused(node: str, **keys: bool) -> str:
    try:
        namespaces.call(node, refuse_kube_proxy, Config("n1", **keys))  # type: ignore[arg-type]
    except CannotRunError as error:
        return f"{error} {error.hint}"
    return ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_agent_refuses_to_serve_beside_kube_proxy(node: str, backend: str) -> None:
    restore(node, backend, FOREIGN)
    assert refused(node) == ""
    program(node, backend)
    message = refused(node)
    assert "kube-proxy's rules are on this node: " in message
    assert "table nat" in message
    assert "nodenet cleanup --kube-proxy" in message
    assert refused(node, services=False) == ""
    remove_all(node)
    assert refused(node) == ""


@pytest.mark.parametrize("version", [4, 6])
def test_legacy_tables_are_read_without_a_program(node: str, version: int) -> None:
    name = "iptables-legacy" if version == 4 else "ip6tables-legacy"
    assert namespaces.call(node, iptables.legacy_tables, version) == []
    run(node, [name, "-t", "filter", "-N", "A"])
    run(node, [name, "-t", "filter", "-N", "B-with-a-long-name-28-chars-"])
    run(node, [name, "-A", "FORWARD", "-p", "tcp", "-m", "comment", "--comment", "x" * 200, "-j", "A"])
    (table,) = namespaces.call(node, iptables.legacy_tables, version)
    assert table == (version, "filter", ("A", "B-with-a-long-name-28-chars-"), False)
    run(node, [name, "-P", "FORWARD", "DROP"])
    assert namespaces.call(node, iptables.legacy_tables, version)[0].forward_drops


def test_legacy_chains_without_the_program_are_named(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program(node, "iptables-legacy")
    monkeypatch.setenv("PATH", "/none")
    found = namespaces.call(node, kube_proxy.find)
    assert len(found) == 2
    hints = []
    for one in found:
        with pytest.raises(CannotRunError, match="iptables-legacy-save is not installed here") as refusal:
            namespaces.call(node, kube_proxy.remove, one)
        hints.append(refusal.value.hint)
    monkeypatch.undo()
    # The command of the hint removes them, and what is not Kubernetes' stays.
    restore(node, "iptables-legacy", "*nat\n:MINE - [0:0]\n-A PREROUTING -p tcp -j MINE\nCOMMIT\n")
    for hint in hints:
        run(node, ["sh", "-c", hint.removeprefix("run on the node: ").partition(";")[0]])
    assert names(node) == []
    left = str(saved(node, "iptables-legacy"))
    assert "-A PREROUTING -p tcp -j MINE" in left
    assert "KUBE-" not in left


def test_missing_programs_of_ipvs_are_named(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_proxy.shutil, "which", lambda program: None)
    assert namespaces.call(node, kube_proxy.unchecked) == []
    subprocess.run(["ip", "-n", node, "link", "add", kube_proxy.DEVICE, "type", "bridge"], check=True)
    whys = [one.why for one in namespaces.call(node, kube_proxy.unchecked)]
    assert whys == ["ipvsadm is not installed here", "ipset is not installed here"]
    monkeypatch.undo()
    assert namespaces.call(node, kube_proxy.unchecked) == []


def test_virtual_servers_that_stay_are_counted(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"ip link add {kube_proxy.DEVICE} type bridge; ip address add 10.96.0.1/32 dev {kube_proxy.DEVICE}"
    run(node, ["sh", "-ec", script])
    lines = ["-A -t 10.96.0.1:443 -s rr", "-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 1", "-A -t 192.0.2.1:30080 -s rr"]
    monkeypatch.setattr(kube_proxy, "_lines", lambda command: lines if command[0] == "ipvsadm" else [])
    assert names(node)[0] == (
        "IPVS: 1 virtual servers with addresses of kube-ipvs0 (1 with other addresses, such as NodePorts, stay: "
        "see ipvsadm -Ln)"
    )


def test_a_check_loads_no_table(node: str) -> None:
    """iptables-legacy loads a table when it is asked for it, and an empty table costs every packet."""
    namespaces.call(node, kube_proxy.find)
    assert run(node, ["cat", "/proc/net/ip_tables_names"]) == ""
    assert run(node, ["nft", "list", "ruleset"]) == ""


def test_restore_input_removes_jumps_before_chains() -> None:
    text = kube_proxy.removal_rules(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-X - [0:0]\n:MINE - [0:0]\n"
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
        '-A PREROUTING -m comment --comment "a -j KUBE-SERVICES" -j MINE\n'
        "-A MINE -g KUBE-SVC-X\n-A KUBE-SERVICES -j KUBE-SVC-X\nCOMMIT\n",
        "nat",
    )
    assert text.splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-X - [0:0]",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-D MINE -g KUBE-SVC-X",
        "-X KUBE-SERVICES",
        "-X KUBE-SVC-X",
        "COMMIT",
    ]


def test_names() -> None:
    assert [name for name in ("KUBE-FIREWALL", "KUBE-SEP-ABC", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-X")
            if kube_proxy.is_kube_proxy("filter", name)] == ["KUBE-SEP-ABC"]  # fmt: skip
    assert kube_proxy.is_kube_proxy("nat", "KUBE-FIREWALL")


def test_a_kernel_without_nf_tables_has_no_rules(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nfnetlink is a part of the kernel that may be missing: the agent starts without it."""
    real = socket.socket

    def without(family: int = -1, kind: int = -1, protocol: int = -1, *more: object) -> socket.socket:
        if (family, protocol) == (socket.AF_NETLINK, nftables.NETLINK_NETFILTER):
            raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
        return real(family, kind, protocol, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(nftables.socket, "socket", without)
    assert namespaces.call(node, kube_proxy.find) == []
    assert namespaces.call(node, chains.generation) is None
    assert namespaces.call(node, nft.our_tables) == []
    assert not namespaces.call(node, egress.remove, 4)
    namespaces.call(node, nft.remove_rules, "net", "veth0", [])


def test_what_comes_and_goes_while_the_agent_runs(node: str) -> None:
    rules = ForeignRules(1.0, services=True)

    def named() -> list[str]:
        return [problem for problem in namespaces.call(node, rules._find) if "kube-proxy serves" in problem]

    assert named() == []
    for backend in BACKENDS:
        program(node, backend)
        assert len(named()) == 2
        assert named() == named()
        remove_all(node)
        assert named() == []
    program(node, "iptables-nft")
    assert namespaces.call(node, ForeignRules(1.0, services=False)._find) == []


def test_a_check_that_fails_is_made_again(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ForeignRules(1.0, services=True)
    program(node, "iptables-nft")

    def fails() -> list[kube_proxy.Remains]:
        raise LinkError("cannot read", errno.EINTR)

    with monkeypatch.context() as patched:
        patched.setattr(kube_proxy, "serving", fails)
        with pytest.raises(LinkError):
            namespaces.call(node, rules._find)
    assert "kube-proxy serves" in str(namespaces.call(node, rules._find))


def test_a_bridge_that_does_not_filter_is_named_beside_kube_proxy(node: str) -> None:
    """Without it kube-proxy does not translate the answers between two pods of the node."""
    families: list[int] = []
    beside, instead = (ForeignRules(1.0, services, lambda: families) for services in (False, True))
    if not Path("/proc/sys/net/bridge").exists():
        pytest.skip("br_netfilter is not loaded")

    def found(rules: ForeignRules, *values: int) -> list[str]:
        for key, value in zip(("iptables", "ip6tables"), values, strict=True):
            sysctl.write(f"bridge/bridge-nf-call-{key}", value, node)
        return namespaces.call(node, rules._find)

    assert found(beside, 0, 0) == []
    families += [4, 6]
    assert found(instead, 0, 0) == []
    assert found(beside, 1, 1) == []
    [one] = found(beside, 1, 0)
    assert one == (
        "Services of kube-proxy fail for IPv6 if client and backend are pods of this node: "
        "on the node: sysctl -w net.bridge.bridge-nf-call-ip6tables=1"
    )
    assert len(found(beside, 0, 0)) == 2


def test_a_missing_module_is_named(node: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysctl, "_ROOT", str(tmp_path))
    [one] = namespaces.call(node, ForeignRules(1.0, False, lambda: [4])._find)
    assert one.endswith("modprobe br_netfilter, then sysctl -w net.bridge.bridge-nf-call-iptables=1")
