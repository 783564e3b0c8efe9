"""What `lab probe` says and how it ends, for outcomes that need no lab."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from netpolicy.matrix import Cell
from netpolicy.types import Protocol
from nodenet.cli import lab_traffic
from nodenet.cli import main as cli
from nodenet.lab import circumstances, client, probe, verdict
from nodenet.lab.pods import Port
from nodenet.lab.probe import Outcome, Survey
from tests.unit.lab_nodes import objects as make

A, B = make.pod("a", ips=["10.244.1.2"]), make.pod("b", ips=["10.244.1.3"])
DENIED = verdict.Drop("node1", "EGRESS", "POLICY_DENIED", ("default/deny",))


class FakeLab:
    lab = "x"

    def __init__(self, name: str) -> None:
        self.objects: Any = {"Pod": [A, B]}.get
        self._name = name


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    namespace = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}}
    monkeypatch.setattr(client, "LabClient", FakeLab)
    monkeypatch.setattr(verdict, "everything", lambda _: [namespace, A, B])

    def run(
        words: str,
        outcome: Outcome | None = None,
        drops: tuple[Any, ...] = (),
        survey: Survey | None = None,
        notes: tuple[str, ...] = (),
    ) -> Any:
        monkeypatch.setattr(probe, "probe", lambda *_, **__: [outcome])
        monkeypatch.setattr(probe, "survey", lambda *_, **__: survey)
        monkeypatch.setattr(lab_traffic, "_drops", lambda *_: list(drops))
        monkeypatch.setattr(lab_traffic, "_circumstances", lambda *_, **__: list(notes))
        return CliRunner().invoke(cli.root, ["lab", "probe", *words.split()])

    return run


SILENT = Outcome("timeout", None, 1000.0, "no answer within 1 s")


def test_what_a_probe_should_be_read_with(run: Any) -> None:
    done = run("--from a --to b", SILENT, notes=("node1 has no route to 10.244.1.3: Network is unreachable",))
    assert done.stdout.endswith("  note: node1 has no route to 10.244.1.3: Network is unreachable\n")


def test_agents_that_do_not_run_are_named_once() -> None:
    agents = [{"node": "node1", "state": "stopped"}, {"node": "node2", "state": "ready"}]
    assert list(circumstances.agents(agents, ["node1", "node1"])) == [
        "the agent of node1 is stopped: the node's rules are those from before, whatever changed since"
    ]
    assert list(circumstances.agents(agents, ["node2", "node3"])) == []


def test_silence_that_policy_does_not_explain_is_no_denial(run: Any) -> None:
    done = run("--from a --to 1.1.1.1 --port 443", SILENT)
    assert done.exit_code == 1
    words = "no answer within 1 s (policy allows it; the lab has no route outside)"
    assert done.stdout.startswith(f"no answer: default/a -> 1.1.1.1 443/TCP (1.1.1.1): {words}\n")
    done = run("--from a --to b", SILENT)
    assert done.stdout.startswith("no answer: ")
    assert "(policy allows it)\n" in done.stdout


def test_a_drop_that_was_seen_is_a_denial(run: Any) -> None:
    done = run("--from a --to b", SILENT, (DENIED,))
    assert (done.exit_code, done.stdout.partition(":")[0]) == (1, "denied")


def test_a_protocol_that_the_kernel_lacks_is_not_tried(run: Any) -> None:
    done = run("--from a --to b --port 5050/sctp", Outcome("unsupported", None, 0.0, "Protocol not supported"))
    assert (done.exit_code, done.stdout) == (3, "")
    assert "5050/SCTP: this kernel does not support SCTP" in done.stderr


CELLS = [Cell(f"default/{source}", f"default/{to}", 80, Protocol.TCP, True) for source, to in (("a", "b"), ("b", "a"))]


@pytest.mark.parametrize(
    ("survey", "words", "code", "told"),
    [
        (Survey(CELLS, (), ()), "--compare", 0, "2 cells, 0 differ"),
        (
            Survey(CELLS, (), ("default/c (no room)",)),
            "--compare",
            0,
            "skipped, because they have no address: default/c (no",
        ),
        (Survey([], (), ("default/c",)), "--compare", 1, "nothing was compared"),
        (Survey([], (), ()), "", 0, ""),
        (Survey([], (Port(82, "SCTP"),), ()), "--compare --ports 82/sctp", 3, "skipped: 82/SCTP: this kernel"),
        (Survey(CELLS, (Port(82, "SCTP"),), ()), "--compare --ports 80,82/sctp", 0, "skipped: 82/SCTP"),
        (Survey(CELLS[:1], (), ()), "--compare", 1, "the probe was not tried"),
    ],
)
def test_a_matrix_names_what_it_leaves_out(run: Any, survey: Survey, words: str, code: int, told: str) -> None:
    done = run(f"--matrix {words}", survey=survey)
    assert (done.exit_code, told in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1"])
def test_a_timeout_is_more_than_nothing(run: Any, seconds: str) -> None:
    assert run(f"--from a --to b --timeout {seconds}", SILENT).exit_code == 2
