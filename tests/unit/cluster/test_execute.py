"""A command in a container, through the API's exec."""

from __future__ import annotations

import asyncio

import pytest

from nodenet.cluster import execute as executing
from nodenet.cluster.client import RefusedError
from nodenet.cluster.execute import Place, execute
from nodenet.errors import CannotRunError
from tests.unit.cluster.api import NO_STATUS, NOT_STARTED, Api

PLACE = Place("ns", "p", "c")


async def answered(code: int, stdout: bytes = b"", stderr: bytes = b"") -> executing.Ran:
    async def run(_pod: str, _words: list[str]) -> tuple[int, bytes, bytes]:
        return code, stdout, stderr

    async with Api(execute=run).cluster() as cluster:
        return await execute(cluster, PLACE, ["x", "y z"], seconds=5)


async def test_streams_are_kept_apart_and_the_exit_status_is_returned() -> None:
    ran = await answered(0, b"\x00\x01" * 5000, b"note")
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"\x00\x01" * 5000, b"note")
    assert (await answered(7)).status == 7


async def test_the_words_of_a_command_arrive_as_they_are() -> None:
    seen: list[str] = []

    async def run(pod: str, words: list[str]) -> tuple[int, bytes, bytes]:
        seen.extend([pod, *words])
        return 0, b"", b""

    async with Api(execute=run).cluster() as cluster:
        await execute(cluster, PLACE, ["sh", "-c", "a b; c & d", "--x=ü"])
    assert seen == ["p", "sh", "-c", "a b; c & d", "--x=ü"]


async def test_a_command_that_does_not_start_says_why() -> None:
    with pytest.raises(CannotRunError, match="pod ns/p: exec x: executable file not found"):
        await answered(NOT_STARTED)


async def test_an_end_without_a_status_is_not_a_success() -> None:
    with pytest.raises(CannotRunError, match="the connection ended before the command did"):
        await answered(NO_STATUS, b"half an answer")


async def test_a_command_that_hangs_or_writes_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_pod: str, _words: list[str]) -> tuple[int, bytes, bytes]:
        await asyncio.sleep(30)
        raise AssertionError

    async with Api(execute=hang).cluster() as cluster:
        with pytest.raises(CannotRunError, match=r"not complete after 0\.2 s"):
            await execute(cluster, PLACE, ["x"], seconds=0.2)
    monkeypatch.setattr(executing, "MOST_OUTPUT", 1500)
    with pytest.raises(CannotRunError, match="it wrote more than"):
        await answered(0, b"x" * 4000)


async def test_a_refused_exec_is_an_error_of_the_api() -> None:
    api = Api(refuse={"p": (403, "no right")})
    async with api.cluster() as cluster:
        with pytest.raises(RefusedError, match="pod ns/p: exec x: 403") as caught:
            await execute(cluster, PLACE, ["x"])
    assert "kubectl auth can-i" in caught.value.hint
