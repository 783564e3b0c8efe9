"""Cluster in, maps out: tests/golden/<case>/{input.yaml,maps.txt}.

input.yaml holds Kubernetes objects as the API server would return them, and documents of the kind `Local` for what the
API does not know: `node` (this node's name), `addresses` (its own) and `endpoints` (pod, ips) that the CNI plugin made.
After a change that is meant, run `pytest tests/golden --update-golden` and read the difference.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from nodenet import kinds
from nodenet.compile import LocalNode, compile_once
from nodenet.kube.decode import decode
from nodenet.model import Endpoint, ObjectRef
from nodenet.store import Op, Store
from nodenet.testing import dump

FOLDER = Path(__file__).parent
CASES = sorted(path.parent for path in FOLDER.glob("*/input.yaml"))


def local(document: dict[str, Any], store: Store) -> LocalNode:
    for number, item in enumerate(document.get("endpoints", ()), 1):
        namespace, _, name = item["pod"].partition("/")
        store.apply(
            Op.ADDED,
            Endpoint(
                endpoint_id=number,
                container_id=f"container{number}",
                ifname="eth0",
                netns="",
                host_ifname=f"nn{number}",
                host_ifindex=10 + number,
                mac=f"02:00:00:00:00:{number:02x}",
                ips=tuple(map(ip_address, item["ips"])),
                pod=ObjectRef(namespace, name),
            ),
        )
    return LocalNode(document["node"], frozenset(map(ip_address, document.get("addresses", ()))))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_golden(case: Path, request: pytest.FixtureRequest) -> None:
    store = Store()
    node = LocalNode("node1")
    for document in yaml.safe_load_all((case / "input.yaml").read_text()):
        if document["kind"] == "Local":
            node = local(document, store)
            continue
        obj = decode(kinds.BY_NAME[document["kind"]], msgspec.json.encode(document)).obj
        assert obj is not None
        store.apply(Op.ADDED, obj)
    state, names = compile_once(store.snapshot(), node)
    text = dump(state.tables, names) + "".join(f"\nwarning: {warning}\n" for warning in names.warnings)
    if request.config.getoption("--update-golden", False):
        (case / "maps.txt").write_text(text)
    assert text == (case / "maps.txt").read_text()
