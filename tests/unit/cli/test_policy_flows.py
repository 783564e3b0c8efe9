"""`policy suggest` and `policy diff` as a person calls them: output, files, exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from nodenet.cli.main import root

Obj = dict[str, Any]

SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
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
    spec: {containers: [{name: c, ports: [{containerPort: 5432}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
"""
CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}}
"""


def flow(source: str, destination: str, port: int, own: int, **fields: Any) -> Obj:
    def end(app: str) -> Obj:
        if app == "world":
            return {"identity": 2, "labels": ["reserved:world"]}
        return {
            "namespace": "shop",
            "pod_name": f"{app}-7f-x",
            "labels": [f"k8s:app={app}"],
            "workloads": [{"name": app}],
        }

    addresses = {"world": "192.0.2.1", "web": "10.0.0.1", "db": "10.0.0.2"}
    found = {
        "verdict": "FORWARDED",
        "IP": {"source": addresses[source], "destination": addresses[destination]},
        "l4": {"TCP": {"source_port": own, "destination_port": port}},
        "source": end(source),
        "destination": end(destination),
        "is_reply": False,
        **fields,
    }
    return {"flow": found, "node_name": "n1"}


FLOWS = [
    flow("world", "web", 8080, 1),
    flow("world", "web", 8080, 2),
    flow("web", "db", 5432, 1),
    flow("db", "web", 8080, 1, verdict="DROPPED", drop_reason_desc="POLICY_DENIED"),
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "closed.yaml").write_text(CLOSED)
    (tmp_path / "flows.json").write_text("\n".join(map(json.dumps, FLOWS)) + "\n\n")
    return tmp_path


def run(folder: Path, *arguments: str, text: str | None = None) -> Result:
    """Names of files in the arguments are those of the folder."""
    names = {path.name: str(path) for path in folder.iterdir()}
    words = [names.get(argument, argument) for argument in arguments]
    return CliRunner().invoke(root, ["policy", *words], input=text)


def test_suggested_policies_can_be_applied_and_pass_the_replay(shop: Path) -> None:
    result = run(shop, "suggest", "-f", "shop.yaml", "--flows", "flows.json")
    assert result.exit_code == 0, result.stderr
    policies = list(yaml.safe_load_all(result.stdout))
    assert [policy["metadata"]["name"] for policy in policies] == ["db-suggested", "web"]
    (rule,) = policies[1]["spec"]["ingress"]
    assert rule == {"from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"protocol": "TCP", "port": "http"}]}
    assert result.stdout.startswith("# 2 policies for 2 kinds of connections.\n")
    assert "#   shop/web -> shop/db 5432/TCP\n" in result.stdout
    for note in (
        "note: seen once only: shop/web -> shop/db 5432/TCP",
        "note: 1 connections were denied when they were recorded; they are not allowed",
        "note: these namespaces have 1 policies already, and policies only add",
        "note: replayed 2 recorded connections: 0 are denied",
    ):
        assert note in result.stderr
    (shop / "new.yaml").write_text(result.stdout)
    again = run(shop, "diff", "-f", "shop.yaml", "--instead", "new.yaml", "--flows", "flows.json")
    assert again.exit_code == 1
    assert "2 recorded kinds of connections: 0 would be cut" in again.stdout
    assert run(shop, "lint", "-f", "shop.yaml", "-f", "new.yaml").exit_code == 0


def test_suggest_from_flows_only(shop: Path) -> None:
    """Without objects the port has no name, and the labels are those of the flows."""
    packed = shop / "flows.json.gz"
    packed.write_bytes(gzip.compress((shop / "flows.json").read_bytes()))
    result = run(shop, "suggest", "--flows", "flows.json.gz", "-o", "json", "--no-dns")
    data = json.loads(result.stdout)
    assert [(row["from"], row["to"], row["port"], row["times"]) for row in data["connections"]] == [
        ("192.0.2.1", "shop/web", 8080, 2),
        ("shop/web", "shop/db", 5432, 1),
    ]
    assert [row["from"] for row in data["seenOnce"]] == ["shop/web"]
    (rule,) = data["policies"][1]["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]
    text = run(shop, "suggest", "--flows", "-", "-o", "table", text=(shop / "flows.json").read_text()).stdout
    assert text.splitlines()[1].split() == ["192.0.2.1", "shop/web", "8080/TCP", "2"]


def test_flows_without_labels_need_the_objects(shop: Path) -> None:
    """A record can be reduced to some fields. A policy for every pod of the namespace would be the result."""
    bare = flow("world", "web", 8080, 1)
    bare["flow"]["destination"] = {"namespace": "shop", "pod_name": "web-0"}
    result = run(shop, "suggest", "--flows", "-", text=json.dumps(bare))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the flows have no labels of shop/web-0" in result.stderr
    (policy,) = yaml.safe_load_all(
        run(shop, "suggest", "-f", "shop.yaml", "--flows", "-", text=json.dumps(bare)).stdout
    )
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "web"}}


def test_a_policy_for_pods_without_labels_is_noted(shop: Path) -> None:
    (shop / "bare.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: x}\n")
    seen = flow("world", "web", 8080, 1)
    seen["flow"]["destination"] = {"namespace": "x", "pod_name": "bare"}
    result = run(shop, "suggest", "-f", "bare.yaml", "--flows", "-", "--default-deny", text=json.dumps(seen))
    assert result.exit_code == 0
    assert "select every pod of their namespace, because their pods have no labels: x/bare\n" in result.stderr


def test_names_in_flows_cannot_leave_the_comments(shop: Path) -> None:
    bad = flow("world", "web", 80, 1)
    bad["flow"]["destination"] |= {"workloads": [{"name": "x\nkind: Secret"}], "pod_name": "x\ny"}
    result = run(shop, "suggest", "--flows", "-", text=json.dumps(bad))
    assert "192.0.2.1 -> shop/x?kind: Secret 80/TCP" in result.stdout
    (policy,) = yaml.safe_load_all(result.stdout)
    assert (policy["kind"], policy["metadata"]["name"]) == ("NetworkPolicy", "x-kind-secret")


@pytest.mark.parametrize(
    ("arguments", "text", "code", "words"),
    [
        (["suggest", "--flows", "-"], "", 1, "no connection was found in the flows"),
        (["suggest", "--flows", "-"], "{}", 1, "(1 flows do not show one)"),
        (["suggest", "--flows", "-"], "\n{nope", 2, "- line 2: not JSON"),
        (["suggest", "--flows", "-"], "[]", 2, "- line 1: expected a flow, got list"),
        (
            ["suggest", "--flows", "-"],
            '{"flow": {"verdict": "FORWARDED", "l4": 7}}',
            2,
            "- line 1: flow.l4: expected a mapping",
        ),
        (["suggest", "-f", "-", "--flows", "-"], "", 2, "the standard input (-) can be read only once"),
        (["diff", "-f", "shop.yaml", "--with", "-", "--flows", "-"], "", 2, "can be read only once"),
        (["suggest", "--flows", "/nowhere"], None, 2, "/nowhere: no such file"),
        (["suggest", "--flows", "-", "--since", "5m"], "", 2, "--flows and --since cannot be combined"),
        (["suggest", "--since", "yesterday"], None, 2, "--since"),
        (["suggest", "--socket", "/nowhere.sock"], None, 3, "/nowhere.sock"),
        (["diff", "-f", "shop.yaml"], None, 2, "expected a second set"),
        (
            ["diff", "-f", "shop.yaml", "--with", "closed.yaml", "--instead", "closed.yaml"],
            None,
            2,
            "cannot be combined",
        ),
        (["diff", "-f", "shop.yaml", "--without", "shop/x"], None, 2, "there is no policy shop/x; there are: shop/db"),
        (["diff", "-f", "shop.yaml", "--without", "shop/db", "--ports", "x"], None, 2, "--ports: port 'x'"),
        (["diff", "--without", "shop/db"], None, 2, "expected one of -f FILE_OR_DIR"),
        (["diff", "--lab", "no-such-lab", "--without", "shop/db"], None, 2, "no-such-lab"),
    ],
)
def test_bad_usage(shop: Path, arguments: list[str], text: str | None, code: int, words: str) -> None:
    result = run(shop, *arguments, text=text)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert result.stdout == ""


def test_diff_of_two_sets(shop: Path) -> None:
    result = run(shop, "diff", "-f", "shop.yaml", "--with", "closed.yaml", "--flows", "flows.json")
    assert result.exit_code == 1
    assert "shop/web  shop/db  5432/TCP  allowed  denied            1" in result.stdout
    assert "8 connections compared: 0 would be allowed, 1 denied" in result.stdout
    assert "2 recorded kinds of connections: 1 would be cut" in result.stdout
    assert "cut: shop/web-7f-x -> shop/db-7f-x 5432/TCP (1 times)" in result.stdout
    data = json.loads(run(shop, "diff", "-f", "shop.yaml", "--with", "closed.yaml", "-o", "json").stdout)
    assert data["changes"] == [
        {"from": "shop/web-0", "to": "shop/db-0", "port": 5432, "protocol": "TCP", "before": True, "after": False}
    ]


def test_diff_warns_of_other_policies_in_the_second_set(shop: Path) -> None:
    (shop / "cilium.yaml").write_text("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\n")
    result = run(shop, "diff", "-f", "shop.yaml", "--with", "cilium.yaml")
    assert (result.exit_code, "CiliumNetworkPolicy (1)" in result.stderr) == (0, True)


def test_diff_without_a_policy(shop: Path) -> None:
    result = run(shop, "diff", "-f", "shop.yaml", "--without", "shop/db", "--flows", "flows.json")
    assert result.exit_code == 1
    assert "outside (192.0.2.1)  shop/db  5432/TCP  denied  allowed            1" in result.stdout
    assert "2 recorded kinds of connections: 0 would be cut" in result.stdout
    assert run(shop, "diff", "-f", "shop.yaml", "-n", "shop", "--without", "db").exit_code == 1


def test_diff_of_equal_sets(shop: Path) -> None:
    result = run(shop, "diff", "-f", "shop.yaml", "--instead", "shop.yaml", "--flows", "flows.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("8 connections compared: no difference\n")


def test_a_cut_flow_is_a_difference_although_no_computed_connection_changes(shop: Path) -> None:
    """The pods of the record use a port that no pod declares."""
    (shop / "other.json").write_text(json.dumps(flow("web", "db", 9999, 1)))
    (shop / "narrow.yaml").write_text(SHOP.partition("---\napiVersion: networking")[0] + "---" + CLOSED)
    result = run(shop, "diff", "-f", "shop.yaml", "--with", "closed.yaml", "--ports", "1/sctp", "--flows", "other.json")
    assert result.exit_code == 1
    assert "cut: shop/web-7f-x -> shop/db-7f-x 9999/TCP" in result.stdout
