"""kube-proxy's rules on a lab's nodes: as they are made, kept, exchanged for another mode, and removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodenet.lab.proxies import MODES
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = pytest.mark.kernel

POD = """
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  containers: [{name: c, image: any, ports: [{containerPort: 8080}]}]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: %d}]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("lab") / "objects.yaml"
    file.write_text("---".join([POD % ("web", "web"), POD % ("client", "client"), SERVICE % ("web", 30080)]))
    with running("proxy", "--proxy", "iptables", "--agent-set", "resync_seconds=1", "-f", file) as made:
        yield made


def on_node(lab: Lab, *command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", f"nn.{lab.name}.node1", *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def chains(lab: Lab) -> str:
    return on_node(lab, "iptables-save")


def serves_web(lab: Lab) -> bool:
    """KUBE-SERVICES leads to the Service."""
    return "-A KUBE-SERVICES" in "".join(line for line in chains(lab).splitlines() if "web:http cluster IP" in line)


def table(lab: Lab) -> str:
    return on_node(lab, "nft", "list", "tables")


def answers(lab: Lab) -> bool:
    address = lab.json("get", "service", "web", "-n", "default")["spec"]["clusterIP"]
    return "web" in lab.fetch("default", "client", f"http://{address}/")


def proxies(lab: Lab) -> list[dict[str, object]]:
    found: list[dict[str, object]] = lab.json("status", check=False)["proxies"]
    return found


def test_rules_follow_the_objects(lab: Lab, tmp_path: Path) -> None:
    assert serves_web(lab)
    assert "--dport 30080" in chains(lab)
    assert answers(lab)
    (proxy,) = proxies(lab)
    assert (proxy["node"], proxy["mode"], proxy["restarts"]) == ("node1", "iptables", 0)
    file = tmp_path / "more.yaml"
    file.write_text(SERVICE % ("more", 30081))
    lab("apply", "-f", file)
    until(lambda: "--dport 30081" in chains(lab), "a new Service has rules")
    lab("delete", "-f", file)
    until(lambda: "--dport 30081" not in chains(lab), "a deleted Service has none")
    assert "--dport 30080" in chains(lab)


def test_the_agent_serves_none_meanwhile(lab: Lab) -> None:
    status = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    assert status["datapath"]["services"] is False


def test_the_stand_in_starts_again_after_it_was_killed(lab: Lab) -> None:
    pid = proxies(lab)[0]["pid"]
    assert isinstance(pid, int)
    on_node(lab, "iptables", "-t", "nat", "-F", "KUBE-SERVICES")
    assert not serves_web(lab)
    os.kill(pid, signal.SIGKILL)
    until(lambda: serves_web(lab), "all rules are there again")
    # The file of what it wrote is a new one, so that the state is not that of the killed process.
    until(lambda: proxies(lab)[0].get("writes"), "it says that it has written rules")
    assert proxies(lab)[0]["restarts"] == 1
    assert "1 restarts" in lab("status").stdout
    # One rule, not two: the rules of the killed process were removed.
    assert on_node(lab, "iptables", "-t", "nat", "-S", "PREROUTING").count("-j KUBE-SERVICES") == 1
    assert answers(lab)


def test_a_reboot(lab: Lab) -> None:
    nodenet("lab", "trouble", "reboot", "node1", "--name", lab.name)
    until(lambda: serves_web(lab), "the rules are there after the reboot", 30)
    until(lambda: answers(lab), "pods answer again", 30)


def test_another_mode_replaces_the_rules(lab: Lab) -> None:
    lab("proxy", "nftables")
    assert "kube-proxy" in table(lab)
    assert "KUBE-" not in chains(lab)
    assert answers(lab)
    assert "Services: nftables" in lab("status").stdout


def test_back_to_the_agent(lab: Lab) -> None:
    lab("proxy", "ebpf")
    assert "kube-proxy" not in table(lab)
    assert "KUBE-" not in chains(lab)
    assert answers(lab)
    assert proxies(lab) == []
    status = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    assert status["datapath"]["services"] is True


def test_leftovers_beside_the_agent_are_named(lab: Lab) -> None:
    """Rules of a kube-proxy that came while the agent serves Services."""
    on_node(lab, "iptables", "-t", "nat", "-N", "KUBE-SERVICES")

    def named() -> bool:
        return "KUBE-SERVICES" in nodenet("status", "--lab", lab.name, "--node", "node1", check=False).stdout

    until(named, "nodenet status names the chain")
    on_node(lab, "iptables", "-t", "nat", "-X", "KUBE-SERVICES")
    until(lambda: not named(), "and no longer")


@pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="this kernel has IPVS")
def test_ipvs_is_refused_with_the_reason(lab: Lab) -> None:
    refused = lab("proxy", "ipvs", check=False)
    assert refused.returncode != 0
    assert "this kernel has no IPVS" in refused.stderr
    assert answers(lab), "nothing changed"
    refused = nodenet("lab", "up", "--name", f"{lab.name}-2", "--proxy", "ipvs", check=False)
    assert "this kernel has no IPVS" in refused.stderr


def test_who_serves_services_is_said_once(lab: Lab) -> None:
    done = nodenet(
        *("lab", "up", "--name", f"{lab.name}-3", "--proxy", "nftables", "--agent-set", "services=true"), check=False
    )
    assert done.returncode != 0
    assert "--agent-set services: --proxy nftables sets this key itself" in done.stderr


def test_the_command_offers_every_mode() -> None:
    for command in (("lab", "up"), ("lab", "proxy")):
        assert "|".join(MODES) in nodenet(*command, "--help").stdout.replace("\n", "").replace(" ", "")
