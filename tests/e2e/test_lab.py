"""What people do with a running lab."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.client import LabClient
from tests.e2e.labs import Lab, nodenet, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

WEB_TO_ORDERS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-to-orders, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, orders]}]}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: orders}}}]}]
"""
EXTRAS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: extra}
spec:
  selector: {matchLabels: {app: extra}}
  template:
    metadata: {labels: {app: extra}}
    spec:
      containers: [{name: c, image: x, ports: [{containerPort: 80}, {containerPort: 81, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: extra}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: extra}
  ports: [{name: a, port: 80}, {name: b, port: 81, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec:
  hostNetwork: true
  containers: [{name: c, image: x, ports: [{containerPort: 7777}]}]
"""


def test_status_and_list_say_that_it_is_well(shop: Lab) -> None:
    status = shop.json("status")
    assert status["healthy"]
    assert [agent["state"] for agent in status["agents"]] == ["ready", "ready"]
    assert status["pods"]["ready"] == status["pods"]["total"] == 11
    labs = {row["name"]: row for row in json.loads(nodenet("lab", "list", "-o", "json").stdout)}
    assert labs[shop.name]["state"] == "running"


def test_pods_are_spread_and_have_an_address_of_each_family(shop: Lab) -> None:
    pods = shop.pods("shop")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node1", "node2"}
    for pod in pods:
        number = pod["spec"]["nodeName"].removeprefix("node")
        first, second = (entry["ip"] for entry in pod["status"]["podIPs"])
        assert first.startswith(f"10.244.{number}.")
        assert second.startswith(f"fd00:10:244:{number}::")


def test_get_prints_what_was_asked_for(shop: Lab) -> None:
    assert shop("get", "deploy", "web", "-n", "shop", "-o", "name").stdout == "deployment/web\n"
    assert shop.json("get", "svc", "web", "-n", "shop")["kind"] == "Service"
    wide = shop("get", "pods", "-A", "-o", "wide").stdout.splitlines()
    assert wide[0].split()[:3] == ["NAMESPACE", "NAME", "READY"]
    assert len(wide) == 12


def test_kubectl_works_with_the_kubeconfig(shop: Lab) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    config = shop("kubeconfig").stdout.strip()
    done = subprocess.run(
        ["kubectl", "--kubeconfig", config, "get", "nodes", "-o", "name"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["node/node1", "node/node2"]


def test_other_users_of_the_machine_are_refused(shop: Lab) -> None:
    port = json.loads((Path("/run/nodenet/lab") / shop.name / "lab.json").read_text())["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/api/v1/namespaces")
    assert connection.getresponse().status == 200
    code = f"import http.client as h; c = h.HTTPConnection('127.0.0.1', {port}); c.request('GET', '/api'); "
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code + "print(c.getresponse().status)"],
        user=65534,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "403\n"


HOSTILE = """
apiVersion: v1
kind: Pod
metadata: {name: hostile}
spec:
  containers:
  - name: c
    image: x
    ports: [{containerPort: 80}]
    env: [{name: LD_PRELOAD, value: /nonexistent.so}, {name: PYTHONPATH, value: /tmp}, {name: COLOUR, value: red}]
"""


@pytest.fixture
def hostile(shop: Lab, tmp_path: Path) -> Iterator[str]:
    """A pod outside all policies; gives its node."""
    manifest = tmp_path / "hostile.yaml"
    manifest.write_text(HOSTILE)
    shop("apply", "-f", manifest)
    try:
        until(lambda: shop.pods("default", "hostile")[0]["status"]["phase"] == "Running", "the pod runs")
        yield str(shop.pods("default", "hostile")[0]["spec"]["nodeName"])
    finally:
        shop("delete", "pod", "hostile", "-n", "default")


def test_a_pod_has_no_say_in_the_api_without_a_token(shop: Lab, hostile: str) -> None:
    """Processes in pods reach the fabric. Of this machine's files they can read what any user can."""
    folder = f"/run/nodenet/lab/{shop.name}"
    script = (
        "cd /; for verb in GET DELETE; do curl -m 5 -s -o /dev/null -w '%{http_code} ' -X $verb "
        "http://172.30.0.1:6443/apis/networking.k8s.io/v1/networkpolicies; done; "
        f"cat {folder}/kubeconfig {folder}/node*/kubeconfig 2>&1 | grep -c denied"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = shop.exec("default", "hostile", *nobody, "sh", "-c", script)
    assert done.stdout.split() == ["401", "401", "3"], hostile


def test_a_pods_env_does_not_reach_the_stand_in_and_clients_do_not_reach_root(shop: Lab, hostile: str) -> None:
    group = next(Path("/sys/fs/cgroup").glob(f"**/nodenet.{shop.name}/{hostile}/pods/default.hostile"))
    (pid,) = (group / "cgroup.procs").read_text().split()
    # The shell that enters the cgroup adds the folder that it is in.
    found = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]) - {b"PWD=/"}
    assert found == {b"PATH=/usr/sbin:/usr/bin:/sbin:/bin", b"LANG=C.UTF-8"}
    rights = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert rights["Uid"].split() == rights["Gid"].split() == ["64999"] * 4
    assert rights["Groups"].strip() == ""
    assert int(rights["CapPrm"], 16) == int(rights["CapEff"], 16) == 0
    done = shop.exec("default", "hostile", "sh", "-c", "echo $COLOUR ${LD_PRELOAD-unset} ${PYTHONPATH-unset}")
    assert done.stdout == "red unset unset\n"
    assert "LD_PRELOAD, PYTHONPATH" in done.stderr
    address = shop.pods("default", "hostile")[0]["status"]["podIP"]
    assert shop.fetch("default", "hostile", f"http://{address}/") == "hostile"


def test_exec_is_inside_the_pod(shop: Lab) -> None:
    script = "hostname; tail -n1 /proc/self/cgroup; echo $API_SERVICE_PORT_HTTP; ls /sys/class/net; exit 7"
    done = shop.exec("shop", "db-0", "sh", "-c", script, check=False)
    assert done.returncode == 7
    lines = done.stdout.split()
    assert lines[0] == "db-0"
    assert lines[1].endswith("/pods/shop.db-0")
    assert lines[2:] == ["80", "eth0", "lo"]


def test_services_are_reached_by_name_on_both_nodes(shop: Lab) -> None:
    names = {pod["metadata"]["name"] for pod in shop.pods("shop", "api-")}
    script = (
        "import urllib.request as r\nfor _ in range(40): print(r.urlopen('http://api/', timeout=2).read().decode())"
    )
    answers = shop.exec("shop", "deploy/web", "python3", "-c", script).stdout.split()
    assert set(answers) == names
    assert shop.fetch("shop", "deploy/web", "http://api.shop.svc.cluster.local/") in names


def test_an_allowed_probe_names_the_rules(shop: Lab) -> None:
    found = shop.json("probe", "--from", "shop/web", "--to", "svc/api.shop")
    assert found["allowed"]
    assert found["answeredBy"].startswith("api-")
    assert found["policy"]["ingress"]["allowedBy"][0]["field"] == "spec.ingress[0]"


def test_a_denied_probe_names_the_policies_and_the_drop(shop: Lab) -> None:
    done = shop("probe", "--from", "attacker/mallory", "--to", "shop/db-0", "--port", "5432", check=False)
    assert done.returncode == 1
    assert "denied: attacker/mallory -> shop/db-0 5432/TCP" in done.stdout
    assert "isolated by shop/back, shop/default-deny" in done.stdout
    assert "dropped it on ingress: POLICY_DENIED by shop/back, shop/default-deny" in done.stdout


def test_a_ghost_with_a_pods_address_changes_nothing(shop: Lab) -> None:
    """A pod of a node that is away still shows an address that another pod has: not Ready, whatever it is called."""
    client = LabClient(shop.name)
    web = shop.pods("shop", "web-")[0]["status"]["podIP"]
    mallory = shop.pods("attacker", "mallory")[0]["status"]["podIP"]
    pods = BY_KIND["Pod"]
    ghosts = {"a-ghost": ("ghost", web), "zz-ghost": ("web", mallory)}

    def known() -> set[int]:
        agents = json.loads(nodenet("status", "--lab", shop.name, "-o", "json").stdout)
        return {agent["objects"]["pods"] for agent in agents}

    until(lambda: len(known()) == 1, "both agents know the same pods")
    (before,) = known()
    try:
        for name, (app, address) in ghosts.items():
            spec = {"nodeName": "away", "containers": [{"name": "c", "image": "x"}]}
            metadata = {"name": name, "namespace": "shop", "labels": {"app": app}}
            client.writer().create(pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
            found = dict(client.get(pods, "shop", name))
            found["status"] = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            client._request("PUT", pods.path("shop", name, "status"), found)
        until(lambda: known() == {before + 2}, "both agents know both ghosts")
        for node in ("node1", "node2"):
            rows = json.loads(nodenet("ipcache", "list", "--lab", shop.name, "--node", node, "-o", "json").stdout)
            owners = {row["ip"]: row["labels"] for row in rows if row["ip"] in (web, mallory)}
            assert "app=web" in owners[web], owners
            assert "ns=attacker" in owners[mallory], owners
        assert shop.json("probe", "--from", "shop/web", "--to", "svc/api.shop")["allowed"]
        question = ("probe", "--from", "attacker/mallory", "--to", "svc/api.shop", "--timeout", "0.3")
        assert shop(*question, check=False).returncode == 1
    finally:
        for name in ghosts:
            client._request("DELETE", f"{pods.path('shop', name)}?gracePeriodSeconds=0")
    until(lambda: known() == {before}, "the ghosts are gone")


def test_a_udp_service_answers(shop: Lab) -> None:
    found = shop.json("probe", "--from", "shop/api", "--to", "svc/events.shop")
    assert (found["protocol"], found["allowed"]) == ("UDP", True)


def test_a_port_that_the_service_has_not_is_refused(shop: Lab) -> None:
    done = shop("probe", "--from", "attacker/mallory", "--to", "svc/web.shop", "--port", "81", check=False)
    assert done.returncode == 1
    assert "Service shop/web: spec.ports: no 81/TCP" in done.stdout


def test_the_whole_matrix_agrees_with_policy(shop: Lab) -> None:
    done = shop("probe", "--matrix", "--compare", "-o", "json")
    results = json.loads(done.stdout)["results"]
    assert set(results[0]) == {"from", "to", "port", "protocol", "allowed"}
    assert {r["allowed"] for r in results} == {True, False}
    assert f"{len(results)} cells, 0 differ" in done.stderr


def test_a_policy_is_in_force_as_soon_as_it_is_applied_and_gone_when_deleted(shop: Lab, tmp_path: Path) -> None:
    manifest = tmp_path / "policy.yaml"
    manifest.write_text(WEB_TO_ORDERS)
    question = ("probe", "--from", "shop/web", "--to", "shop/orders", "--timeout", "0.3")
    assert shop(*question, check=False).returncode == 1
    shop("apply", "-f", manifest)
    until(lambda: shop(*question, check=False).returncode == 0, "web reaches orders")
    shop("delete", "-f", manifest)
    until(lambda: shop(*question, check=False).returncode == 1, "web does not reach orders")


def test_pods_come_and_go_with_all_that_is_theirs(shop: Lab, tmp_path: Path) -> None:
    manifest = tmp_path / "extras.yaml"
    manifest.write_text(EXTRAS)
    shop("apply", "-f", manifest, "--wait")
    pods = shop.pods("default")
    names = {pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"] != "on-host"}
    (host,) = (pod for pod in pods if pod["metadata"]["name"] == "on-host")
    assert host["status"]["podIP"] == host["status"]["hostIP"]
    assert len(names) == 2
    cluster_ips = shop.json("get", "svc", "extra")["spec"]["clusterIPs"]
    for address in cluster_ips:
        url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
        until(lambda url=url: shop.fetch("default", "on-host", url) in names, f"{url} answers a hostNetwork pod")
    assert shop.json("probe", "--from", "attacker/mallory", "--to", "default/on-host")["allowed"]
    namespaces = [Path(f"/run/netns/nn.{shop.name}.default.{name}") for name in names]
    assert all(path.exists() for path in namespaces)
    shop("delete", "-f", manifest)
    until(lambda: not shop.pods("default"), "the pods are gone")
    assert not any(path.exists() for path in namespaces)
    assert not list(Path("/sys/fs/cgroup").glob(f"**/nodenet.{shop.name}/*/pods/default.*"))


def test_a_stand_in_that_dies_is_started_again(shop: Lab) -> None:
    def restarts() -> int:
        """-1 while it is not ready."""
        (status,) = shop.pods("shop", "payments-")[0]["status"]["containerStatuses"]
        return int(status["restartCount"]) if status["ready"] else -1

    before = restarts()
    (pod,) = shop.pods("shop", "payments-")
    (group,) = Path("/sys/fs/cgroup").glob(f"**/nodenet.{shop.name}/*/pods/shop.{pod['metadata']['name']}")
    os.kill(int((group / "cgroup.procs").read_text()), signal.SIGKILL)
    until(lambda: restarts() > before, "the stand-in is back")


def test_a_matrix_with_its_own_ports_asks_every_pod(shop: Lab) -> None:
    results = shop.json("probe", "--matrix", "--ports", "8000", "--timeout", "0.4")["results"]
    assert len(results) == 11 * 10
    assert {(r["port"], r["protocol"]) for r in results} == {(8000, "TCP")}


def test_usage_errors_are_told(shop: Lab) -> None:
    for words in (("probe",), ("probe", "--matrix", "--to", "x"), ("exec", "db-0"), ("delete",), ("apply",)):
        assert shop(*words, check=False).returncode == 2, words


def test_python_of_the_tests_is_the_one_that_runs_the_lab(shop: Lab) -> None:
    assert sys.executable in " ".join(
        Path(f"/proc/{agent['pid']}/cmdline").read_text().split("\0")[0] for agent in shop.json("status")["agents"]
    )
