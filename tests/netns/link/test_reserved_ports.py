"""Ports that the kernel gives to no socket, in a namespace of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodenet.agent import source_ports
from nodenet.agent.source_ports import SourcePorts
from nodenet.link import netns as link_netns
from nodenet.link import reserved_ports, sysctl

pytestmark = pytest.mark.kernel
OURS = (49152, 65535)


def text() -> str:
    return sysctl.read(reserved_ports.KEY)


def test_ours_come_to_those_that_are_reserved_and_go_again(netns: str, tmp_path: Path) -> None:
    def scenario() -> None:
        sysctl.write(reserved_ports.KEY, "8080,49000-49200")
        ports = SourcePorts(tmp_path, OURS)
        ports.sync()
        assert text() == "8080,49000-65535"
        assert source_ports.ours(tmp_path) == ((49201, 65535),)
        # Another agent finds them as they are.
        SourcePorts(tmp_path, OURS).sync()
        assert source_ports.ours(tmp_path) == ((49201, 65535),)
        # Removed by another program: put back.
        sysctl.write(reserved_ports.KEY, "8080")
        ports.sync()
        assert text() == "8080,49152-65535"
        source_ports.release(tmp_path)
        assert text() == "8080"
        assert source_ports.ours(tmp_path) == ()

    link_netns.call(netns, scenario)


def test_another_range_and_none(netns: str, tmp_path: Path) -> None:
    def scenario() -> None:
        SourcePorts(tmp_path, OURS).sync()
        SourcePorts(tmp_path, (20000, 20999)).sync()
        assert text() == "20000-20999"
        SourcePorts(tmp_path, None).sync()
        assert text() == ""

    link_netns.call(netns, scenario)


def test_what_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: reserved_ports.Range) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(reserved_ports, "add", refuse)
    ports = SourcePorts(tmp_path, OURS)
    asyncio.run(ports.refresh())
    assert ["cannot be written" in problem for problem in ports.problems] == [True]
