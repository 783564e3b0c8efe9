"""`nodenet trace drops` sees what the host's own stack drops."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel
COMMAND = (sys.executable, "-c", "from nodenet.cli.main import main; main()")
SEND = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))"


def test_a_datagram_that_nobody_waits_for(netns):
    pytest.importorskip("bcc", reason="needs python3-bpfcc")
    words = (*COMMAND, "trace", "drops", "--interval", "0.1", "--duration", "20", "--reason", "no_socket", "-o", "json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr
            assert tracer.stdout
            if "tracing" not in tracer.stderr.readline():
                pytest.fail(tracer.stderr.read())
            subprocess.run(["ip", "netns", "exec", netns, sys.executable, "-c", SEND], check=True)
            drop = json.loads(tracer.stdout.readline())
        finally:
            tracer.terminate()
    assert (drop["reason"], drop["protocol"]) == ("NO_SOCKET", "IPv4")
    assert drop["packets"] >= 1
    assert "udp" in drop["function"]
