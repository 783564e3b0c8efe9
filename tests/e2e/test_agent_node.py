"""The node's own addresses, as the agent follows them."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.labs import Lab, nodenet, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_an_address_that_the_node_gives_up_is_the_hosts_no_longer(shop: Lab) -> None:
    def identity(address: str) -> int | None:
        rows = json.loads(nodenet("ipcache", "list", "--lab", shop.name, "--node", "node1", "-o", "json").stdout)
        return next((row["identity"] for row in rows if row["ip"].partition("/")[0] == address), None)

    def ip(verb: str) -> None:
        subprocess.run(
            ["ip", "-n", f"nn.{shop.name}.node1", "address", verb, "172.30.77.77/32", "dev", "eth0"], check=True
        )

    ip("add")
    try:
        until(lambda: identity("172.30.77.77") == 1, "a new address is the host's")
    finally:
        ip("del")
    until(lambda: identity("172.30.77.77") is None, "it is forgotten")
