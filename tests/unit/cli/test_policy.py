"""`nodenet policy` as a person calls it: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from nodenet.cli.main import root
from nodenet.kube.config import ClusterAccess
from nodenet.kube.listing import Listed

BOUTIQUE = Path(__file__).parents[4] / "shared" / "manifests" / "online-boutique"

SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, ports: [{containerPort: 5432}, {containerPort: 5432, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other, labels: {app: client}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.9}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: nothing, namespace: shop}
spec: {selector: {app: nothing}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ignored, namespace: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 5432}]
    - from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.8/29]}}]
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["policy", *arguments])


@pytest.fixture
def shop(tmp_path: Path) -> str:
    file = tmp_path / "shop.yaml"
    file.write_text(SHOP)
    return str(file)


def cells(result: Result) -> dict[tuple[str, str, int, str], bool]:
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    assert all(row.keys() == {"from", "to", "port", "protocol", "allowed"} for row in rows)
    return {(row["from"], row["to"], row["port"], row["protocol"]): row["allowed"] for row in rows}


def test_matrix_json_has_a_row_for_each_replica_and_declared_port(shop: str) -> None:
    found = cells(run("matrix", "-f", shop, "-o", "json"))
    assert len(found) == 3 * 2 + 3 * 2
    assert found["shop/web-1", "shop/db-0", 5432, "TCP"] is True
    assert found["shop/web-1", "shop/db-0", 5432, "UDP"] is False
    assert found["other/client", "shop/db-0", 5432, "TCP"] is False
    assert found["shop/db-0", "shop/web-0", 8080, "TCP"] is True


def test_matrix_of_given_ports(shop: str) -> None:
    found = cells(run("matrix", "-f", shop, "-o", "json", "--ports", "80/sctp,5432"))
    assert {key[2:] for key in found} == {(80, "SCTP"), (5432, "TCP")}
    assert len(found) == 4 * 3 * 2


def test_matrix_as_yaml_is_the_same_and_as_a_grid_is_readable(shop: str) -> None:
    as_json = json.loads(run("matrix", "-f", shop, "-o", "json").stdout)
    assert yaml.safe_load(run("matrix", "-f", shop, "-o", "yaml").stdout) == as_json
    text = run("matrix", "-f", shop).stdout
    assert text.splitlines()[0].split() == ["from", "\\", "to", "1", "2", "3", "4"]
    assert text.splitlines()[1].split() == ["other/client", "X", "X", ".", "."]
    assert "1  shop/db-0 5432/TCP" in text
    assert text.endswith("12 connections: 8 allowed (.), 4 denied (X)\n")


def test_notes_go_to_stderr(shop: str) -> None:
    result = run("matrix", "-f", shop, "-o", "json")
    assert "skipped: ConfigMap (1)" in result.stderr
    assert "ipBlock rules cannot match pods without status.podIP in the input: shop/web-0" in result.stderr


def explained(shop: str, source: str, destination: str, port: str) -> tuple[int, dict[str, Any], str]:
    arguments = ("explain", "-f", shop, "--from", source, "--to", destination, "--port", port)
    result = run(*arguments, "-o", "json")
    assert result.stdout, result.stderr
    return result.exit_code, json.loads(result.stdout), run(*arguments).stdout


def test_explain_names_the_rule_that_allows(shop: str) -> None:
    code, data, text = explained(shop, "shop/web-0", "shop/db-0", "5432/tcp")
    assert (code, data["allowed"]) == (0, True)
    (answer,) = data["connections"]
    assert answer["egress"]["reason"] == "not-isolated"
    (rule,) = answer["ingress"]["allowedBy"]
    assert rule == {"namespace": "shop", "policy": "db", "direction": "ingress", "index": 0, "field": "spec.ingress[0]"}
    assert "shop/web-0 -> shop/db-0 5432/TCP: ALLOWED" in text
    assert "by shop/db spec.ingress[0]" in text


def test_explain_says_what_each_rule_misses(shop: str) -> None:
    code, data, text = explained(shop, "shop/web-0", "shop/db-0", "80")
    assert (code, data["allowed"]) == (1, False)
    ingress = data["connections"][0]["ingress"]
    assert ingress["isolatedBy"] == ["shop/db"]
    assert [miss["rule"]["index"] for miss in ingress["notAllowedBy"]] == [0, 1]
    assert "from matches, ports: 5432/TCP, not 80/TCP" in text
    assert "missing: an ingress rule from shop/web-0 (app=web) on 80/TCP, in a policy that selects shop/db-0" in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("10.0.0.1", None),
        ("10.0.0.9", "selects only in namespace shop (no namespaceSelector), not in other"),
        ("10.0.0.10", "10.0.0.10 is in 10.0.0.0/24 but in its except 10.0.0.8/29"),
        ("10.1.0.1", "10.1.0.1 is not in 10.0.0.0/24"),
        ("2001:db8::1", "2001:db8::1 is not in 10.0.0.0/24"),
    ],
)
def test_explain_addresses(shop: str, source: str, words: str | None) -> None:
    """An address of a pod is that pod."""
    code, data, text = explained(shop, source, "shop/db", "5432")
    assert code == (1 if words else 0)
    assert words is None or words in text
    assert data["connections"][0]["from"]["name"] == ("other/client" if source == "10.0.0.9" else source)


@pytest.mark.parametrize("destination", ["svc/web.shop", "10.96.0.7"])
def test_explain_a_service_means_its_backends_and_their_ports(shop: str, destination: str) -> None:
    code, data, text = explained(shop, "other/client", destination, "80")
    assert code == 0
    assert [(c["to"]["name"], c["port"]) for c in data["connections"]] == [("shop/web-0", 8080), ("shop/web-1", 8080)]
    assert "shop/web-0 8080/TCP (behind svc/web.shop): ALLOWED  (and 1 more with the same answer)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["matrix"], 2, "expected one of -f FILE_OR_DIR, --lab NAME and --kubeconfig FILE"),
        (["matrix", "-f", "/nowhere"], 2, "/nowhere: no such file or folder"),
        (["matrix", "-f", "SHOP", "--ports", "80/icmp"], 2, "port '80/icmp': expected the protocol tcp, udp or sctp"),
        (["matrix", "-f", "SHOP", "--ports", "0"], 2, "port '0': expected 1-65535"),
        (["explain", "-f", "SHOP", "--from", "shop/x", "--to", "shop/db", "--port", "1"], 2, "shop has: db, web"),
        (
            ["explain", "-f", "SHOP", "--from", "svc/web.shop", "--to", "shop/db", "--port", "1"],
            2,
            "cannot be a source",
        ),
        (["explain", "-f", "SHOP", "--from", "shop/db", "--to", "svc/x", "--port", "1"], 2, "svc/web.shop"),
        (["explain", "-f", "SHOP", "--from", "shop/db", "--to", "svc/web.shop", "--port", "1"], 2, "it has: 80/TCP"),
        (
            ["explain", "-f", "SHOP", "--from", "shop/db", "--to", "svc/nothing.shop", "--port", "80"],
            1,
            "has no backend",
        ),
        (["explain", "-f", "SHOP", "--from", "shop/db", "--to", "shop/web", "--port", "x"], 2, "--port: port 'x'"),
        (["explain", "--from", "a/b", "--to", "c/d", "--port", "1", "--socket", "/nowhere"], 3, "/nowhere"),
    ],
)
def test_bad_usage(shop: str, arguments: list[str], code: int, words: str) -> None:
    result = run(*(shop if argument == "SHOP" else argument for argument in arguments))
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if line.startswith("nodenet: ")]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("kind: Pod", "apiVersion: required"),
        (SHOP.replace("port: 5432}", "port: 99999}"), "NetworkPolicy shop/db: spec.ingress[0].ports[0].port"),
        (
            SHOP.replace("app: db}}\n  ing", "app: d b}}\n  ing"),
            "NetworkPolicy shop/db: spec.podSelector.matchLabels[app]",
        ),
        (
            SHOP.replace("containerPort: 8080", "containerPort: 0"),
            "Deployment shop/web: spec.template.spec.containers[0]",
        ),
        (SHOP.replace("podIP: 10.0.0.9", "podIP: 10.0.0"), "Pod other/client: status.podIP: expected an IP address"),
        (SHOP.replace("replicas: 2", "replicas: many"), "Deployment shop/web: spec.replicas: expected a whole number"),
    ],
)
@pytest.mark.parametrize("command", ["matrix", "lint"])
def test_bad_input_is_one_sentence_that_names_object_and_field(
    tmp_path: Path, command: str, text: str, words: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    result = run(command, "-f", str(file))
    assert result.exit_code == 2
    assert words in result.stderr
    assert str(file) in result.stderr
    assert result.stdout == ""


def test_a_running_lab_is_asked_for_its_real_pods(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods of a Deployment are found by the name that people know, and keep their own names in the matrix."""
    web = {
        "kind": "Pod",
        "metadata": {
            "name": "web-5d8f-x7",
            "namespace": "shop",
            "labels": {"app": "web", "pod-template-hash": "5d8f"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d8f"}],
        },
        "spec": {"containers": [{"ports": [{"containerPort": 8080}]}]},
        "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "2001:db8::1"}], "phase": "Running"},
    }
    gone = {**web, "metadata": {"name": "old", "namespace": "shop"}, "status": {"phase": "Succeeded"}}
    kept = {obj["kind"]: obj for obj in yaml.safe_load_all(SHOP) if obj["kind"] == "NetworkPolicy"}
    client = {
        "kind": "Pod",
        "metadata": {"name": "client", "namespace": "other"},
        "status": {"podIPs": [{"ip": "10.0.0.9"}]},
    }
    pending = {"kind": "Pod", "metadata": {"name": "pending", "namespace": "other"}}
    objects = {"Pod": [web, gone, client, pending], "NetworkPolicy": [kept["NetworkPolicy"]]}

    class FakeLab:
        def __init__(self, lab: str) -> None:
            assert lab == "demo"

        def objects(self, kind: str) -> list[Any]:
            return objects.get(kind, [])

        def custom(self) -> list[Any]:
            calico = ("crd.projectcalico.org", "NetworkPolicy")
            return [SimpleNamespace(group=group, kind=kind) for group, kind in (calico, ("example.org", "Policy"))]

        def listing(self, resource: Any) -> tuple[list[Any], str]:
            metadata = {"name": "x", "namespace": "shop"}
            return [{"apiVersion": f"{resource.group}/v1", "kind": resource.kind, "metadata": metadata}], "1"

    monkeypatch.setattr("nodenet.lab.client.LabClient", FakeLab)
    assert "WARNING: 1 policy of other APIs" in run("lint", "--lab", "demo").stderr
    assert cells(run("matrix", "--lab", "demo", "-o", "json")) == {
        ("other/client", "shop/web-5d8f-x7", 8080, "TCP"): True
    }
    result = run(
        "explain", "--lab", "demo", "--from", "other/client", "--to", "shop/web", "--port", "8080", "-o", "json"
    )
    names = [answer["to"] | {"labels": None} for answer in json.loads(result.stdout)["connections"]]
    assert names[0] == {"name": "shop/web-5d8f-x7", "address": "10.0.0.1", "labels": None}


def test_a_cluster_is_asked_with_the_context_of_the_kubeconfig(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [obj for obj in yaml.safe_load_all(Path(shop).read_text()) if obj["kind"] in ("Pod", "NetworkPolicy")]
    database = {
        "metadata": {"name": "db-0", "namespace": "shop", "labels": {"app": "db"}},
        "status": {"podIP": "10.0.1.1"},
    }
    objects.append({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []}, **database})
    asked = []

    def read(access: ClusterAccess) -> Listed:
        asked.append(access.server)
        return Listed(objects, ("nodes cannot be listed: 403",))

    monkeypatch.setattr("nodenet.kube.listing.read", read)
    config = tmp_path / "config"
    named = {name: {"cluster": {"server": f"http://{name}"}} for name in ("one", "two")}
    config.write_text(
        yaml.safe_dump(
            {
                "current-context": "one",
                "contexts": [{"name": name, "context": {"cluster": name}} for name in named],
                "clusters": [{"name": name, **each} for name, each in named.items()],
            }
        )
    )
    result = run("matrix", "--kubeconfig", str(config), "--ports", "5432", "-o", "json")
    assert cells(result) == {
        ("other/client", "shop/db-0", 5432, "TCP"): False,
        ("shop/db-0", "other/client", 5432, "TCP"): True,
    }
    assert "warning: nodes cannot be listed: 403" in result.stderr
    monkeypatch.setenv("KUBECONFIG", str(config))
    assert run("lint", "--context", "two").exit_code == 1
    assert asked == ["http://one", "http://two"]
    result = run("lint", "--context", "three")
    assert result.exit_code == 2
    assert "no entry has the name 'three'" in result.stderr
    assert "kubectl get pods," in result.stderr
    monkeypatch.setenv("KUBECONFIG", f"{config}:{config}")
    assert "KUBECONFIG: expected one file" in run("lint", "--context", "two").stderr


def test_standard_input_and_urls(shop: str) -> None:
    result = CliRunner().invoke(root, ["policy", "lint", "-f", "-"], input=Path(shop).read_text())
    assert result.stdout == "1 policies: no mistakes found\n"
    result = run("matrix", "-f", "https://example.org/a.yaml")
    assert result.exit_code == 2
    assert "https://example.org/a.yaml: expected a file or a folder, not a URL" in result.stderr
    # The first word is the name of the program that runs the test.
    assert "policy matrix -f -" in result.stderr


@pytest.mark.parametrize("command", ["matrix", "lint", "explain --from shop/web --to shop/db --port 1"])
def test_policies_of_other_apis_are_a_warning(shop: str, command: str) -> None:
    others = "".join(
        f"---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n"
        for api, kind in (("crd.projectcalico.org/v1", "NetworkPolicy"), ("cilium.io/v2", "CiliumNetworkPolicy"))
    )
    result = CliRunner().invoke(root, ["policy", *command.split(), "-f", "-"], input=Path(shop).read_text() + others)
    assert "WARNING: 2 policies of other APIs are not evaluated" in result.stderr
    assert "CiliumNetworkPolicy (1), NetworkPolicy (1)" in result.stderr
    assert result.stdout == run(*command.split(), "-f", shop).stdout


def test_lint_lists_findings(shop: str, tmp_path: Path) -> None:
    result = run("lint", "-f", shop, "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"findings": []})
    assert run("lint", "-f", shop).stdout == "1 policies: no mistakes found\n"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SHOP.replace("app: web}}}]", "app: wbe}}}]"))
    result = run("lint", "-f", str(wrong), "-o", "json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["check"] == "peer-selects-nothing"
    assert "no pod anywhere has app=wbe" in run("lint", "-f", str(wrong)).stdout


@pytest.mark.skipif(not BOUTIQUE.exists(), reason=f"no demo application at {BOUTIQUE}")
class TestOnlineBoutique:
    """A real application's own policies."""

    def test_matrix(self) -> None:
        found = cells(run("matrix", "-f", str(BOUTIQUE), "-o", "json"))
        assert found["default/loadgenerator-0", "default/redis-cart-0", 6379, "TCP"] is False
        assert found["default/cartservice-0", "default/redis-cart-0", 6379, "TCP"] is True
        assert found["default/frontend-0", "default/productcatalogservice-0", 3550, "TCP"] is True
        assert (len(found), sum(found.values())) == (121, 26)

    def test_explain(self) -> None:
        code, data, text = explained(str(BOUTIQUE), "loadgenerator", "svc/redis-cart", "6379")
        assert code == 1
        assert data["connections"][0]["ingress"]["isolatedBy"] == ["default/deny-all", "default/redis-cart"]
        assert "default/loadgenerator-0 has app=loadgenerator (wanted: app=cartservice)" in text

    def test_lint(self) -> None:
        assert run("lint", "-f", str(BOUTIQUE)).exit_code == 0
