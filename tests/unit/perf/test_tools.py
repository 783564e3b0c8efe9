"""Running the kernel's tools: limits, failures, interruption."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from nodenet.errors import CannotRunError
from perf import tools


def test_a_tool_that_takes_too_long_is_killed_and_reported() -> None:
    started = time.monotonic()
    with pytest.raises(tools.ToolTimeoutError, match=r"sleep 60: not finished after 0.2 s"):
        tools.run(["sleep", "60"], timeout=0.2)
    assert time.monotonic() - started < 5


def test_a_tool_that_fails_speaks() -> None:
    with pytest.raises(CannotRunError, match=r"exit status 3: no such chain"):
        tools.run([sys.executable, "-c", "import sys; sys.stderr.write('no such chain'); sys.exit(3)"])


def test_an_interruption_stays_one_though_the_tool_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: subprocess.Popen[str], *_: Any) -> tuple[str, str]:
        self.kill()
        self.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tools.run(["sleep", "60"])


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "/nonexistent")
    with pytest.raises(CannotRunError, match="not installed: nft, ipvsadm") as found:
        tools.require("nft", "ipvsadm")
    assert found.value.hint == "apt-get install ipvsadm nftables"
