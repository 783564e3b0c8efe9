"""Access to a lab's API, on a real endpoint. Another address of this machine represents the fabric."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from nodenet.kube.config import from_kubeconfig
from nodenet.lab import files, guard, layout, names
from nodenet.lab.apiserver.server import ApiServer, serve

PODS = "/api/v1/namespaces/default/pods"
FABRIC = "127.0.0.2"
TOKENS = guard.new_tokens(["node1", "node2"])


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """The endpoint where it is not 127.0.0.1: there a token decides."""
    api = ApiServer(access=guard.LabAccess(TOKENS.users()))
    async with serve(api, addresses=[(FABRIC, 0)]) as server:
        yield server.urls[0]


async def status(method: str, url: str, token: str | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, **options) as response,
    ):
        return response.status, await response.json()


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "evil"},
    "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "x"}]},
}


@pytest.mark.parametrize(
    "token", [None, "", "wrong", TOKENS.admin[:-1], TOKENS.admin + "x", "\udcff\udcfe", "x" * 8000]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PODS),
        ("GET", PODS),
        ("GET", f"{PODS}?watch=1"),
        ("DELETE", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/p"),
        ("PATCH", f"{PODS}/x/status"),
        ("GET", "/version"),
        ("GET", "/no/such/path"),
    ],
)
async def test_without_a_token_nothing_is_answered(url: str, method: str, path: str, token: str | None) -> None:
    code, found = await status(method, url + path, token, json=POD)
    assert code == 401
    assert {key: found[key] for key in ("kind", "apiVersion", "status", "reason", "code")} == {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Unauthorized", "code": 401,
    }  # fmt: skip


async def test_another_scheme_with_the_right_secret_is_no_token(url: str) -> None:
    headers = {"Authorization": f"Basic {TOKENS.admin}"}
    async with aiohttp.ClientSession() as session, session.get(url + PODS, headers=headers) as response:
        assert response.status == 401


async def test_an_agent_reads_what_agents_watch_and_patches_only_nodes(url: str) -> None:
    token = TOKENS.agents["node1"]
    for path in ("/version", PODS, "/api/v1/nodes", "/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/services"):
        assert (await status("GET", url + path, token))[0] == 200, path
    for method, path in (
        ("POST", PODS),
        ("DELETE", PODS),
        ("PATCH", f"{PODS}/x"),
        ("PUT", "/api/v1/nodes/node1"),
        ("PUT", f"{PODS}/x"),
        ("POST", f"{PODS}/x/binding"),
        ("GET", "/apis/apps/v1/deployments"),
        ("DELETE", "/version"),
    ):
        code, found = await status(method, url + path, token, json=POD)
        assert (code, found["reason"]) == (403, "Forbidden"), (method, path)
        assert 'User "nodenet-agent:node1" cannot' in found["message"]


async def test_the_administrator_may_do_everything(url: str) -> None:
    assert (await status("POST", url + PODS, TOKENS.admin, json=POD))[0] == 201
    assert (await status("DELETE", f"{url}{PODS}/evil", TOKENS.admin))[0] == 200


async def test_on_the_loopback_interface_the_sockets_owner_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    api = ApiServer(access=guard.LabAccess(TOKENS.users()))
    async with serve(api, addresses=[("127.0.0.1", 0)]) as server:
        assert (await status("GET", server.urls[0] + PODS))[0] == 200
        monkeypatch.setattr(guard, "_allowed", lambda _peer, _own: False)
        assert (await status("GET", server.urls[0] + PODS))[0] == 403
        assert (await status("GET", server.urls[0] + PODS, TOKENS.admin))[0] == 200


async def test_hostile_bodies_are_a_400(url: str) -> None:
    headers = {"Authorization": f"Bearer {TOKENS.admin}", "Content-Type": "application/yaml"}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 10}]\n" for n in range(9))
    for kind, body in (
        ("application/json", "[" * 1_000_000),
        ("application/json", '{"a":' * 100_000 + "1" + "}" * 100_000),
        ("application/yaml", "[" * 100_000),
        ("application/yaml", bomb),
        ("application/yaml", "a: &a [*a]"),
        ("application/yaml", "a: 1\n---\nb: 2\n"),
    ):
        headers["Content-Type"] = kind
        async with aiohttp.ClientSession() as session, session.post(url + PODS, data=body, headers=headers) as response:
            assert (response.status, (await response.json())["reason"]) == (400, "BadRequest"), body[:20]
    assert (await status("GET", url + PODS, TOKENS.admin))[0] == 200


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", "a\nb", "a\n", "a;b=c", "-a", "a..b", "A", ""])
@pytest.mark.parametrize("field", ["name", "namespace", "nodeName"])
async def test_a_name_that_is_no_name_is_refused(url: str, field: str, name: str) -> None:
    if field == "nodeName" and not name:
        return
    pod: dict[str, Any] = {**POD, "metadata": {"name": "x"}, "spec": dict(POD["spec"])}  # type: ignore[call-overload]
    if field == "nodeName":
        pod["spec"]["nodeName"] = name
    elif field == "name":
        pod["metadata"]["name"] = name
    if field == "namespace":
        code, _ = await status("POST", f"{url}/api/v1/namespaces", TOKENS.admin, json={"metadata": {"name": name}})
    else:
        code, _ = await status("POST", url + PODS, TOKENS.admin, json=pod)
    assert code == 422


def test_tokens_are_only_in_files_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "RUN_ROOT", tmp_path)
    plan = layout.plan("x", 2, layout.IPFamily.IPV4)
    old = tmp_path / "x" / "node1"
    old.mkdir(parents=True)
    (old / ".kubeconfig.new").write_text("left by a crash, readable by all")
    files.write_all(files.LabState(plan, 24), 1234, TOKENS)
    secrets = {"kubeconfig": TOKENS.admin, "node1/kubeconfig": TOKENS.agents["node1"]}
    for place, token in secrets.items():
        path = tmp_path / "x" / place
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert from_kubeconfig(path).token == token
    text = "".join(path.read_text() for path in tmp_path.rglob("*.yaml"))
    assert yaml.safe_load(text) is not None
    assert not any(token in text for token in (TOKENS.admin, *TOKENS.agents.values()))
    assert len({TOKENS.admin, *TOKENS.agents.values()}) == 3
