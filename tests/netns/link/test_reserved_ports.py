"""Ports that the kernel gives to no socket, in a namespace of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nodenet.agent import source_ports
from nodenet.agent.source_ports import SourcePorts
from nodenet.errors import BadInputError
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


def test_served_ports_of_the_node_are_no_source_ports(netns: str, tmp_path: Path) -> None:
    """A hostPort and a node port in the range from which the kernel chooses."""
    served: list[frozenset[int] | None] = [frozenset({443, 30080, 40000, 40001, 45000})]

    def scenario() -> None:
        sysctl.write(reserved_ports.KEY, "8080,45000")
        ports = SourcePorts(tmp_path, OURS, lambda: served[0])
        assert refresh(ports) == []
        assert text() == "8080,40000-40001,45000,49152-65535", "443 and 30080 are below the range"
        assert source_ports.ours(tmp_path) == ((40000, 40001), OURS)
        # Not known yet after a start: what an agent reserved stays.
        served[0] = None
        assert refresh(SourcePorts(tmp_path, OURS, lambda: served[0])) == []
        assert text() == "8080,40000-40001,45000,49152-65535"
        served[0] = frozenset({40001})
        assert refresh(ports) == []
        assert text() == "8080,40001,45000,49152-65535"
        # Too many: the ports for calls from outside stay.
        served[0] = frozenset(range(32768, 49152))
        assert "expected at least 8192" in refresh(ports)[0]
        assert text() == "8080,45000,49152-65535"
        served[0] = frozenset(range(32768, 35768, 2))
        assert "has no room for them" in refresh(ports)[0]
        assert text() == "8080,45000,49152-65535"
        assert refresh(SourcePorts(tmp_path, None, lambda: served[0])) == []
        assert text() == "8080,45000"

    link_netns.call(netns, scenario)


def test_an_agent_that_is_killed_leaves_nothing_that_no_other_releases(netns: str, tmp_path: Path) -> None:
    """It ends directly after each of the two steps."""

    class KilledError(BaseException):
        pass

    def scenario() -> None:
        for name in ("add", "_note"):
            module = reserved_ports if name == "add" else source_ports
            real = getattr(module, name)

            def killed(*words: object, real: Callable[..., object] = real) -> None:
                real(*words)
                raise KilledError

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, killed)
                with pytest.raises(KilledError):
                    SourcePorts(tmp_path, OURS).sync()
            assert source_ports.ours(tmp_path) == (OURS,)
            source_ports.release(tmp_path)
            assert text() == ""

    link_netns.call(netns, scenario)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "reserved-ports").write_text("many\n")
    assert source_ports.noted(tmp_path)
    with pytest.raises(BadInputError, match="reserved-ports: expected ranges of ports"):
        source_ports.release(tmp_path)


def refresh(ports: SourcePorts) -> list[str]:
    asyncio.run(ports.refresh())
    return ports.problems


@pytest.mark.parametrize("local", ["49152 65535", "50000 60000", "42000 65535"])
def test_sockets_keep_ports(netns: str, tmp_path: Path, local: str) -> None:
    """The range of the IANA, a small one, and one of which too few would be left."""

    def scenario() -> None:
        sysctl.write(reserved_ports.LOCAL_KEY, local)
        sysctl.write(reserved_ports.KEY, "8080")
        ports = SourcePorts(tmp_path, OURS)
        with pytest.raises(
            BadInputError, match=r"source_ports: 49152-65535 are not reserved: .*expected at least 8192"
        ):
            ports.sync()
        assert text() == "8080"
        assert source_ports.ours(tmp_path) == ()
        with socket.socket() as one:
            one.bind(("", 0))
        # Ports outside of the range can be reserved.
        SourcePorts(tmp_path, (20000, 20999)).sync()
        assert text() == "8080,20000-20999"

    link_netns.call(netns, scenario)


def test_a_range_that_becomes_too_small_gets_its_ports_back(netns: str, tmp_path: Path) -> None:
    def scenario() -> None:
        ports = SourcePorts(tmp_path, OURS)
        ports.sync()
        sysctl.write(reserved_ports.LOCAL_KEY, "49152 65535")
        with pytest.raises(BadInputError):
            ports.sync()
        assert text() == ""
        with socket.socket() as one:
            one.bind(("", 0))
        sysctl.write(reserved_ports.LOCAL_KEY, "32768 60999")
        ports.sync()
        assert text() == "49152-65535"

    link_netns.call(netns, scenario)


def test_what_others_reserved_counts() -> None:
    """28,232 ports, 16,384 of them below ours."""
    default = (32768, 60999)
    assert source_ports.too_few_left(OURS, (), default) is None
    assert source_ports.too_few_left(OURS, ((32768, 40959),), default) is None
    error = source_ports.too_few_left(OURS, ((32768, 40960),), default)
    assert error is not None
    assert "of the 20039 ports" in str(error)
    assert "8191 would be left" in str(error)
    assert "outside of that range" in error.hint
    # Nothing is taken.
    assert source_ports.too_few_left(OURS, (), (40000, 40100)) is None
    assert source_ports.too_few_left(OURS, (OURS,), (49152, 65535)) is None


def test_too_few_ports_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserved_ports, "read", tuple)
    monkeypatch.setattr(reserved_ports, "local", lambda: (49152, 65535))
    (problem,) = refresh(SourcePorts(tmp_path, OURS))
    assert "set source_ports in the configuration" in problem


def test_what_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(reserved_ports, "read", tuple)
    monkeypatch.setattr(reserved_ports, "local", lambda: (32768, 60999))
    monkeypatch.setattr(reserved_ports, "add", refuse)
    (problem,) = refresh(SourcePorts(tmp_path, OURS))
    assert "cannot be changed" in problem
    assert source_ports.ours(tmp_path) == (), "nothing is ours"


def test_a_list_that_is_too_long_is_not_written(netns: str) -> None:
    """The kernel would take the first page of it, and forget what others reserved behind that."""

    def scenario() -> None:
        sysctl.write(reserved_ports.KEY, "8080")
        with pytest.raises(ValueError, match="expected at most 4095 characters"):
            reserved_ports.add((port, port) for port in range(10001, 12001, 2))
        assert text() == "8080"

    link_netns.call(netns, scenario)
