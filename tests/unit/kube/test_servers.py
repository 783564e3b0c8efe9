"""Several API servers, a rotated token and a replaced certificate authority."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from nodenet import kinds
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.session import AnswerError, Session
from tests.unit.kube.api import CUT, HOLD, Pauses, Script, event, namespace, page, serving, take

NOBODY = "http://127.0.0.1:1"


async def test_the_next_server_is_used_when_one_does_not_answer() -> None:
    async with (
        serving(Script([page(namespace("a"))], [[HOLD]])) as url,
        KubeClient(ClusterAccess(NOBODY, others=(url,)), sleep=Pauses()) as client,
    ):
        events = client.watch(kinds.NAMESPACE)
        await take(events, 1)
        assert client.stats[kinds.NAMESPACE].errors == 1
        await events.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [[CUT], 500, 503])
async def test_a_watch_continues_at_another_server(end: object) -> None:
    """From the version that it has: the servers of a cluster share their storage."""
    first = Script([page(namespace("a"), version="10")], [end])
    second = Script([page()], [[event("ADDED", namespace("b", "12"))]])
    async with (
        serving(first) as one,
        serving(second) as two,
        KubeClient(ClusterAccess(one, others=(two,)), sleep=Pauses()) as client,
    ):
        events = client.watch(kinds.NAMESPACE)
        await take(events, 2)
        await events.aclose()  # type: ignore[attr-defined]
    assert [query["resourceVersion"] for query in second.watch_queries] == ["10"]
    assert second.list_queries == []


@pytest.mark.parametrize("code", [401, 403, 404, 410, 429])
async def test_an_answer_about_the_request_does_not_change_the_server(code: int) -> None:
    async with serving(Script([(code, {})])) as url, Session(ClusterAccess(url, others=(NOBODY,))) as session:
        with pytest.raises(AnswerError):
            async with session.get("/"):
                pass
        assert session.server == url


async def test_one_failure_of_many_requests_moves_on_by_one_server() -> None:
    async with serving(Script([(503, {})])) as url, Session(ClusterAccess(url, others=(NOBODY, url))) as session:

        async def ask() -> None:
            async with session.get("/"):
                pass

        answers = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(answer, AnswerError) for answer in answers)
        assert session.server == NOBODY


async def test_an_expired_token_is_read_again_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    """The kubelet replaces the file before the token expires; an answer of 401 does not end the agent's view."""
    token = tmp_path / "token"
    token.write_text("old")

    class Rotating(Pauses):
        async def __call__(self, seconds: float) -> None:
            await super().__call__(seconds)
            if len(self.seconds) == 3:
                token.write_text("new\n")

    script = Script([page(version="10")], [401, 401, 401, [event("ADDED", namespace("b", "12"))]])
    async with (
        serving(script) as url,
        KubeClient(ClusterAccess(url, token_file=token), sleep=Rotating()) as client,
    ):
        events = client.watch(kinds.NAMESPACE)
        await take(events, 2)
        await events.aclose()  # type: ignore[attr-defined]
    assert len(script.list_queries) == 1
    assert [headers["Authorization"] for headers in script.headers] == ["Bearer old"] * 4 + ["Bearer new"]


async def test_a_token_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    token = tmp_path / "token"

    class Appearing(Pauses):
        async def __call__(self, seconds: float) -> None:
            await super().__call__(seconds)
            token.write_text("t")

    async with (
        serving(Script([page(namespace("a"))])) as url,
        KubeClient(ClusterAccess(url, token_file=token), sleep=Appearing()) as client,
    ):
        events = client.watch(kinds.NAMESPACE)
        await take(events, 1)
        assert client.stats[kinds.NAMESPACE].errors == 1
        await events.aclose()  # type: ignore[attr-defined]


def certificate(folder: Path, name: str) -> Path:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=api"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return folder / f"{name}.crt"


async def test_a_replaced_authority_is_accepted_without_a_restart(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_bytes(certificate(tmp_path, "old").read_bytes())
    access = ClusterAccess("", ssl.create_default_context(cafile=str(authority)), authority=authority)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate(tmp_path, "new"), tmp_path / "new.key")
    app = web.Application()
    app.router.add_get("/", Script([{"ok": True}]).handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
    access = ClusterAccess(f"https://127.0.0.1:{runner.addresses[0][1]}", access.ssl, authority=authority)
    try:
        async with Session(access) as session:
            for _ in range(2):
                with pytest.raises(OSError, match="certificate verify failed"):
                    async with session.get("/"):
                        pass
            authority.write_bytes((tmp_path / "new.crt").read_bytes())
            with pytest.raises(OSError, match="certificate verify failed"):
                async with session.get("/"):
                    pass
            async with session.get("/") as response:
                assert response.status == 200
    finally:
        await runner.cleanup()


async def test_each_error_of_several_servers_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The next server's error is another text each time."""
    caplog.set_level(logging.INFO)
    other = "http://127.0.0.1:2"
    pauses = Pauses()
    async with KubeClient(ClusterAccess(NOBODY, others=(other,)), sleep=pauses) as client:
        first = asyncio.ensure_future(anext(client.watch(kinds.NAMESPACE)))
        async with asyncio.timeout(10):
            while len(pauses.seconds) < 10:  # noqa: ASYNC110  the client's own task
                await asyncio.sleep(0.01)
        first.cancel()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all(f"{NOBODY} or {other}: Namespace: " in warning for warning in warnings)
