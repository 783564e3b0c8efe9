"""A connectivity test in a played cluster: what its pods report becomes results, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from nodenet.cli.connectivity import result_text
from nodenet.cluster.connectivity import objects, session
from nodenet.cluster.connectivity.checks import CHECKS
from nodenet.cluster.connectivity.stage import Options, default_image
from nodenet.cluster.connectivity.values import Result
from nodenet.errors import BadInputError, CannotRunError, NodenetError
from tests.unit.cluster.api import Api

Obj = dict[str, Any]
NODES = ("a", "b")
# The result of a connection: from the client's pod, to a target.
Network = Callable[[str, str], Obj]


class World:
    """The cluster. `policies`: whether the network enforces NetworkPolicies."""

    def __init__(self, *, policies: bool = True, ready: bool = True, source: str = "") -> None:
        self.api = Api(react=self._react, execute=self._execute)
        self._enforced, self._ready, self._source = policies, ready, source
        self._addresses: dict[str, str] = {}
        for name in NODES:
            conditions = [{"type": "Ready", "status": "True"}]
            addresses = [{"type": "InternalIP", "address": f"192.0.2.{ord(name)}"}]
            status = {"conditions": conditions, "addresses": addresses}
            self.api.add({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {}, "status": status})
        kubernetes = {"name": "kubernetes", "namespace": "default"}
        spec = {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]}
        self.api.add({"apiVersion": "v1", "kind": "Service", "metadata": kubernetes, "spec": spec})
        dns = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
        self.api.add({"apiVersion": "v1", "kind": "Service", "metadata": dns, "spec": spec})

    def _react(self, obj: Obj) -> None:
        number = len(self._addresses) + 1
        if obj["kind"] == "Service" and "ports" in obj["spec"]:
            none = obj["spec"].get("clusterIP") == "None"
            obj["spec"]["clusterIPs"] = ["None"] if none else [f"10.96.1.{number}", f"fd96::{number}"]
            for port in obj["spec"]["ports"]:
                port["nodePort"] = 30000
            self._addresses |= dict.fromkeys(obj["spec"]["clusterIPs"], obj["metadata"]["name"])
        if obj["kind"] == "Pod":
            terms = obj["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            [node] = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"]
            obj["spec"]["nodeName"] = node
            ips = [f"10.0.0.{number}", f"fd00::{number}"]
            self._addresses |= dict.fromkeys(ips, obj["metadata"]["name"])
            obj["status"] = {"podIPs": [{"ip": ip} for ip in ips], "phase": "Running"}
            if self._ready:
                obj["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
            else:
                waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
                obj["status"]["containerStatuses"] = [{"name": "peer", "state": {"waiting": waiting}}]

    async def _execute(self, pod: str, words: list[str]) -> tuple[int, bytes, bytes]:
        if words[0] == "nodenet":
            return 0, f"a flow of {' '.join(words[4:])}\n".encode(), b""
        until = words[words.index("--until") + 1]
        targets = words[words.index("--times") + 2 :]
        lines = [json.dumps(self._answer(pod, target, until)) for target in targets]
        return 0, ("\n".join(lines) + "\n").encode(), b""

    def _answer(self, pod: str, target: str, until: str) -> Obj:
        """As peer.py: a result that is not the wanted one is not settled."""
        scheme, _, rest = target.partition("://")
        host, _, port = rest.partition("?")[0].rpartition(":")
        name = self._addresses.get(host.strip("[]"), "")
        result = "ok"
        if host.startswith("192.0.2."):
            result = "refused"
        elif self._enforced and self._denied(pod, name, port, scheme):
            result = "timeout"
        good = result == "ok" if until == "ok" else result != "ok"
        found: Obj = {"target": target, "result": result, "tries": 3, "settled": 0.1 if good else None}
        family = scheme[-1]
        own = next(ip for ip, owner in self._addresses.items() if owner == pod and (":" in ip) == (family == "6"))
        # A Service leads to its first pod.
        server = name if name.startswith("server-") else "server-1"
        return {**found, "server": server, "client": self._source or own}

    def _denied(self, pod: str, server: str, port: str, scheme: str) -> bool:
        names = {obj["metadata"]["name"] for obj in self.api.objects.values() if obj["kind"] == "NetworkPolicy"}
        friend = pod == "friend" and port == "8080" and scheme.startswith("tcp")
        return (
            "deny-ingress" in names
            or ("deny-egress" in names and pod == "client-1")
            or ("allow-friend" in names and not friend)
        )

    async def test(self, *names: str, keep: bool = False, **options: Any) -> dict[str, Result]:
        checks = [check for check in CHECKS if not names or check.name in names]
        self.said: list[str] = []
        report = session.Report(self.said.append, lambda _result: None)
        async with self.api.cluster() as cluster:
            chosen = Options(image="i", **options)
            return {r.title: r for r in await session.test(cluster, chosen, checks, report, keep=keep)}

    def left(self) -> list[str]:
        return [name for name in self.api.remaining() if "nodenet-test" in name or name.startswith(("Pod", "Network"))]


async def test_a_good_network_passes_every_check_of_both_families_and_nothing_stays() -> None:
    world = World()
    found = await world.test(egress_target="198.51.100.1:443")
    states = {title: result.state.value for title, result in found.items()}
    skipped = {title: found[title].reason for title, state in states.items() if state == "skipped"}
    assert skipped == {
        "nodeport (IPv4)": "node ports are not served: every node refuses",
        "nodeport (IPv6)": "the nodes have no IPv6 addresses",
        "egress (IPv6)": "198.51.100.1 has no IPv6 address",
        "pod-to-apiserver (IPv6)": "the Service default/kubernetes has no IPv6 address",
    }
    assert set(states.values()) == {"passed", "skipped"}
    assert found["deny-ingress (IPv6)"].connections == 24
    assert found["allow-by-label (IPv4)"].settled == 0.1
    assert world.left() == []


async def test_a_network_without_policies_fails_exactly_the_checks_of_policies() -> None:
    found = await World(policies=False).test()
    failed = {result.check for result in found.values() if result.state == "failed"}
    assert failed == {"deny-ingress", "deny-egress", "allow-by-label"}
    [first, *_] = found["deny-egress (IPv4)"].failures
    assert first.what == "client-1 to server-1 tcp/8080"
    assert first.got == "ok after 3 tries; expected no connection"


async def test_a_failure_says_how_to_look_further_and_what_the_agents_saw() -> None:
    world = World(policies=False)
    owner = {"kind": "DaemonSet", "name": "nodenet"}
    labels = {"app.kubernetes.io/name": "nodenet"}
    metadata = {"name": "nodenet-x", "namespace": "nodenet", "labels": labels, "ownerReferences": [owner]}
    world.api.add({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "a"}})
    result = (await world.test("deny-egress"))["deny-egress (IPv4)"]
    text = result_text(result)
    space = next(line for line in world.said if line.startswith("namespace")).split()[1].rstrip(",")
    assert f"kubectl exec -n {space} client-1 -- python3 /peer/peer.py ask tcp4://10.0.0." in text
    assert (
        f"nodenet policy explain --kubeconfig FILE --from {space}/client-1 --to {space}/server-1 --port 8080/tcp"
        in text
    )
    assert f"seen: a: a flow of --from-pod {space}/client-1 --protocol tcp --to-port 8080" in text
    assert "seen: b: " not in text


async def test_a_translated_source_is_a_failure() -> None:
    found = await World(source="192.0.2.97").test("pod-to-pod-other-node", "pod-to-itself-by-service")
    [failure, *_] = found["pod-to-pod-other-node (IPv4)"].failures
    assert failure.got == "the server sees the source 192.0.2.97; expected the client's own address 10.0.0.8"
    assert found["pod-to-itself-by-service (IPv4)"].state == "passed"


async def test_pods_that_cannot_start_are_named_and_deleted() -> None:
    world = World(ready=False)
    with pytest.raises(
        CannotRunError, match="client-1, client-2, friend, server-1, server-2: ImagePullBackOff no such"
    ):
        await world.test()
    assert world.left() == []


async def test_an_interrupted_test_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    asked = asyncio.Event()

    async def hang(_pod: str, _words: list[str]) -> tuple[int, bytes, bytes]:
        asked.set()
        await asyncio.sleep(60)
        raise AssertionError

    world.api.execute = hang
    task = asyncio.create_task(world.test("deny-ingress"))
    await asked.wait()
    assert world.left() != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.left() == []


async def test_a_namespace_is_kept_on_request_and_says_so() -> None:
    world = World()
    await world.test("dns", keep=True)
    assert any("kubectl delete namespace nodenet-test-" in line for line in world.said)
    assert any(name.startswith("Namespace nodenet-test") for name in world.left())


async def test_a_user_without_rights_is_told_so() -> None:
    world = World()
    world.api.refuse["namespaces"] = (403, 'User "u" cannot create resource "namespaces"')
    with pytest.raises(NodenetError, match='403 User "u" cannot create resource'):
        await world.test()
    assert [write for write in world.api.writes if write[0] == "DELETE"] == []


async def test_a_node_that_does_not_exist() -> None:
    with pytest.raises(BadInputError, match=r"--node c: the cluster has no such node \(its nodes: a, b\)"):
        await World().test(nodes=("c",))


async def test_workers_are_preferred_to_the_control_plane() -> None:
    world = World()
    control = world.api.named("Node", "a")
    assert control is not None
    control["spec"]["taints"] = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]
    world.api.add({**control, "metadata": {"name": "c"}, "spec": {}})
    await world.test("dns")
    assert "nodes b, c" in world.said[0]


async def test_the_default_image_is_that_of_the_daemonset() -> None:
    api = Api()
    async with api.cluster() as cluster:
        with pytest.raises(BadInputError, match="--image: required"):
            await default_image(cluster)
        spec = {"template": {"spec": {"containers": [{"image": "registry.example/nodenet:1"}]}}}
        metadata = {"name": "nodenet", "namespace": "nodenet", "labels": {"app.kubernetes.io/name": "nodenet"}}
        api.add({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec})
        assert await default_image(cluster) == "registry.example/nodenet:1"


def test_the_pods_fit_the_strictest_pod_security() -> None:
    pod = objects.pod("ns", "p", "node", "image")
    [container] = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert objects.namespace("ns")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
