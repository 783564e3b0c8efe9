"""The ends of a machine's two lines: the sentinel, and reasons why there is none here."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nodenet.errors import CannotRunError
from perf.vm import Kernel, cannot_run, machine, run_in_vm

TOKEN = "0123456789abcdef"


def test_sentinel_ends_the_output_however_it_is_cut() -> None:
    whole = f"one\n\ntwo\n\n{TOKEN} 7\n".encode()
    for size in (1, 3, 100):
        lines: list[str] = []
        reader = machine._Reader(TOKEN, lines.append)
        for at in range(0, len(whole), size):
            assert reader.status is None
            reader.take_output(whole[at : at + size])
        assert reader.status == 7
        assert reader.output() == "one\n\ntwo\n"
        assert lines == ["one", "", "two"]


def test_other_text_is_no_sentinel() -> None:
    reader = machine._Reader(TOKEN, None)
    reader.take_output(b"\n0000000000000000 0\n")
    reader.take_output(f"{TOKEN} 0".encode())
    assert reader.status is None
    reader.take_console(f"\n{TOKEN} 0\n".encode())
    assert reader.status is None


def test_output_of_any_bytes_is_kept() -> None:
    reader = machine._Reader(TOKEN, None)
    reader.take_output(b"\xff\x00 raw" + f"\n{TOKEN} 0\n".encode())
    assert reader.output() == "\ufffd\x00 raw"


def test_command_is_quoted_for_the_shell() -> None:
    script = machine._script(["echo", "a b", "$HOME"], TOKEN, Path("/a folder"), {"KEY": "it's"}).decode()
    assert "echo 'a b' '$HOME'" in script
    assert "cd '/a folder' && (" in script
    assert "export KEY='it'\"'\"'s'" in script


def test_reason_where_tools_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = cannot_run()
    assert "qemu-system-x86_64" in reason
    assert "apt-get install" in reason
    with pytest.raises(CannotRunError, match="qemu-system-x86_64"):
        run_in_vm(Kernel("x", "x", tmp_path), ["true"])


def test_reason_for_others_than_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    assert "root" in cannot_run()


def test_reasons_for_an_end_without_a_sentinel() -> None:
    reader = machine._Reader(TOKEN, None)
    reader.take_console(b"booting\r\n[    1.2] Kernel panic - not syncing: no init\r\n")

    class Ended:
        timed_out = False

    ended = Ended()
    stopped = threading.Event()
    assert machine._reason(ended, reader, stopped, 9) == "Kernel panic - not syncing: no init"  # type: ignore[arg-type]
    assert "booting" in reader.tail()
    ended.timed_out = True
    assert machine._reason(ended, reader, None, 9) == "no end in 9 s"  # type: ignore[arg-type]
    stopped.set()
    assert machine._reason(ended, reader, stopped, 9) == "stopped"  # type: ignore[arg-type]
