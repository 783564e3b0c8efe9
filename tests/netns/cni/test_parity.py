"""Parity with the reference plugins, as a table that the documentation shows: docs/cni.md is checked against what is
observed here. `NODENET_WRITE_DOCS=1 pytest tests/netns/cni/test_parity.py` writes the table anew."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodenet.link import netns
from tests.netns.cni.conftest import World, ping
from tests.netns.cni.parity import CASES, REFERENCE, Side, differences

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not (REFERENCE / "bridge").exists(), reason="no reference plugins: apt-get install containernetworking-plugins"
    ),
]
DOCS = Path(__file__).parents[3] / "docs/cni.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
# Every difference that is meant, by facet. A difference without a reason here fails the test.
REASONS = {
    "pod.accept_ra": "ours takes no router advertisements in pods: any pod on the bridge could send them "
    "(CVE-2020-10749; the reference closes only the bridge's side)",
    "pod.accept_dad": "without ipam the reference does not change the pod's settings; ours are the same for every pod",
    "node.port link-local": "the veth's node end has no address of its own: a bridge port needs none, and none means "
    "no duplicate detection and multicast reports for it",
    "result.routes": "ours names the gateway that the route got; the reference repeats the configuration",
    "result.dns": "what resolvConf or another IPAM plugin says reaches the result; the reference's `bridge` "
    "overwrites it with its own empty `dns`",
    "ADD": "ours has a code for each reason; the reference says 999 for all of them",
    "DEL": "DEL reads only what it needs, so a pod can be removed with a configuration that ADD refuses",
    "leases": "`last_reserved_ip.<n>` after a failed ADD: a hint for the next round, no lease",
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Differences by "case, family"."""

    base = tmp_path_factory.mktemp("parity")

    def one(case: Any, family: str, reference: bool) -> dict[str, Any]:
        folder = base / uuid.uuid4().hex[:8]
        folder.mkdir()
        world = World(netns.create(f"nntest-{uuid.uuid4().hex[:8]}"), folder)
        try:
            return Side(world, folder / "leases", reference).observe(case, family, ping)
        finally:
            for path in (world.node, *world.pods):
                netns.delete(path)

    jobs = {}
    # Most of it is waiting for answers, and for their absence: several cases at once.
    with ThreadPoolExecutor(8) as pool:
        for case in CASES:
            for family in case.families:
                name = case.name if len(case.families) == 1 else f"{case.name}, {family}"
                jobs[name] = [pool.submit(one, case, family, reference) for reference in (False, True)]
    found = {name: [job.result() for job in sides] for name, sides in jobs.items()}
    return {name: (ours, differences(ours, reference)) for name, (ours, reference) in found.items()}


def test_every_difference_is_explained(observed: dict[str, Any]) -> None:
    unexplained = {
        name: {facet: values for facet, values in different.items() if facet not in REASONS}
        for name, (_, different) in observed.items()
    }
    assert {name: facets for name, facets in unexplained.items() if facets} == {}


def test_every_reason_is_needed(observed: dict[str, Any]) -> None:
    assert {facet for _, different in observed.values() for facet in different} == set(REASONS)


def test_nothing_is_left_by_del(observed: dict[str, Any]) -> None:
    for name, (ours, _) in observed.items():
        # Without the plugin that gave an address nobody can give it back: the reference's DEL fails as well.
        assert ours["DEL"] == 0 or name in ("cniVersion 9.9.9", "ipam.type that is not there")
        assert (ours["left.leases"], ours["left.veths"], ours["left.rules"]) == ([], [], []), name
        assert all(interfaces == ["lo"] for interfaces in ours["left.pod"]), name


def table(observed: dict[str, Any]) -> str:
    """The table of docs/cni.md."""
    everywhere = ("pod.accept_ra", "node.port link-local")
    numbers = {facet: str(number) for number, facet in enumerate(REASONS, 1)}
    same = sum(not set(different) - set(everywhere) for _, different in observed.values())
    rows = [
        f"{len(observed)} configurations; {same} of them differ in nothing but notes 1 and 3, which are everywhere.",
        "",
        "| configuration | ADD | compared | differs in |",
        "|---|---|---|---|",
    ]
    for name, (ours, different) in observed.items():
        notes = [f"{facet} ({numbers[facet]})" for facet in different if facet not in everywhere]
        rows.append(f"| {name} | {ours['ADD']} | {len(ours)} | {', '.join(notes) or '-'} |")
    return "\n".join([*rows, "", *(f"{numbers[facet]}. `{facet}`: {why}." for facet, why in REASONS.items())])


def test_the_documentation_shows_it(observed: dict[str, Any]) -> None:
    if observed["vlan 100"][0]["ADD"] == "done":
        pytest.skip("this kernel's bridges know VLANs: the table in docs/cni.md is of one that does not")
    text = DOCS.read_text()
    head, _, rest = text.partition(BEGIN)
    shown, _, tail = rest.partition(END)
    wanted = f"\n{table(observed)}\n"
    if os.environ.get("NODENET_WRITE_DOCS"):
        DOCS.write_text(f"{head}{BEGIN}{wanted}{END}{tail}")
        shown = wanted
    assert shown == wanted
