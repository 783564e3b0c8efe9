"""A watch ends when it gets no data for too long, and only then."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol

from nodenet.kube.config import ClusterAccess
from nodenet.kube.idle import IdleLimit
from nodenet.kube.session import Session


def _content() -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    return aiohttp.StreamReader(protocol, 1 << 16, loop=loop)


async def test_data_moves_the_limit() -> None:
    loop, seen = asyncio.get_running_loop(), list[float]()

    def last_data() -> float:
        if len(seen) < 3:
            seen.append(loop.time())
        return seen[-1]

    content = _content()
    async with IdleLimit(content, 0.02, last_data):
        with pytest.raises(aiohttp.SocketTimeoutError, match=r"no data for 0\.02 s"):
            await content.readany()
    assert len(seen) == 3
    assert loop.time() >= seen[-1] + 0.02


async def test_after_the_read_there_is_no_limit() -> None:
    content = _content()
    async with IdleLimit(content, 0.01, asyncio.get_running_loop().time):
        pass
    await asyncio.sleep(0.05)
    assert content.exception() is None


async def test_a_server_that_never_answers_a_watch_is_left() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        first, second = f"http://{host}:{port}", "http://127.0.0.1:1"
        async with Session(ClusterAccess(first, others=(second,))) as session:
            with pytest.raises(TimeoutError):
                async with session.get("/api/v1/pods", read_seconds=0.1, limits_body=False):
                    pass
            assert session.server == second
