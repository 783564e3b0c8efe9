"""The same Services by kube-proxy's rules and by eBPF: random calls get the same answers, but for documented
differences.

`make differential` makes a thousand calls, the suite some tens. NODENET_DIFFERENTIAL: how many; NODENET_SEED: which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.differential.differences import BASE, DOCUMENTED, unexplained
from tests.differential.probes import Probe, Seen, chosen
from tests.differential.tables import Spec, specs
from tests.differential.world import World, apply, world

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PROBES = int(os.environ.get("NODENET_DIFFERENTIAL", "60"))
SEED = int(os.environ.get("NODENET_SEED", "1"))
# At most 100: addresses are made from their numbers.
SERVICES = min(100, max(12, PROBES // 15))
MODES = (BASE, "iptables", "ebpf")
Answers = dict[str, dict[Probe, Seen]]


def table() -> tuple[Spec, ...]:
    """Services that hypothesis makes."""
    found: dict[Spec, None] = {}

    @seed(SEED)
    @settings(max_examples=SERVICES, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(specs(), min_size=1, max_size=4))
    def collect(several: list[Spec]) -> None:
        found.update(dict.fromkeys(several))

    collect()
    return tuple(replace(spec, number=number) for number, spec in enumerate(list(found)[:SERVICES]))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    folder = tmp_path_factory.mktemp("differential")
    with world(folder, MODES[0]) as empty:
        made = apply(empty, table(), folder)
        probes = chosen(table(), made.places, PROBES, SEED)
        yield {mode: _answers(made, mode, probes) for mode in MODES}


def _answers(made: World, mode: str, probes: list[Probe]) -> dict[Probe, Seen]:
    made.switch(mode)
    return dict(zip(probes, made.call(probes), strict=True))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != BASE])
def test_the_answers_are_kube_proxys(answers: Answers, mode: str, record_property: pytest.RecordProperty) -> None:
    counts: dict[str, int] = {}
    wrong = []
    for probe, base in answers[BASE].items():
        other = answers[mode][probe]
        fields = unexplained(mode, probe, base, other, counts)
        if fields:
            wrong.append(f"{', '.join(fields)}: {probe}\n    {BASE}: {base}\n    {mode}: {other}")
    record_property("documented", counts)
    print(f"{mode}: {len(answers[BASE])} probes, documented differences: {counts}")
    assert not wrong, f"{len(wrong)} of {len(answers[BASE])} probes (seed {SEED}):\n" + "\n".join(wrong)


def test_the_probes_meet_every_answer(answers: Answers) -> None:
    """Otherwise the comparison would say little."""
    found = {answer for seen in answers[BASE].values() for answer in seen.answers}
    assert found >= {"answered", "refused", "timeout"}
    assert {probe.kind for probe in answers[BASE]} == {"cluster", "node1", "node2", "balancer", "external"}
    assert len({backend for seen in answers[BASE].values() for backend in seen.backends}) > 2


@pytest.mark.parametrize("difference", DOCUMENTED, ids=lambda difference: difference.name)
def test_every_difference_is_documented(difference: object) -> None:
    says = getattr(difference, "says", "")
    assert says in (ROOT / "docs" / "services.md").read_text()
