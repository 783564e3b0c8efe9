"""`lab delete` ends when what it deleted is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nodenet.cli import lab_objects
from nodenet.cli.main import root
from nodenet.errors import NodenetError
from nodenet.lab.apiserver.resources import BY_KIND

GOING: dict[str, Any] = {"metadata": {"deletionTimestamp": "now"}}


class Objects:
    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.answers = list(answers)

    def get(self, *_: object) -> dict[str, Any] | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("last", [None, {"metadata": {}}])
def test_it_waits_until_the_object_is_gone_or_another_one(monkeypatch: pytest.MonkeyPatch, last: Any) -> None:
    monkeypatch.setattr(lab_objects, "_POLL", 0.0)
    objects: Any = Objects(GOING, GOING, last)
    lab_objects._until_gone(objects, [(BY_KIND["Pod"], "default", "a")], 5)
    assert objects.answers == [last]


def test_one_that_stays_is_named() -> None:
    objects: Any = Objects(GOING)
    with pytest.raises(NodenetError, match="pod/a is still being deleted after 0 s"):
        lab_objects._until_gone(objects, [(BY_KIND["Pod"], "default", "a")], 0)


class FakeLab:
    def __init__(self, lab: str) -> None:
        assert lab == "demo"

    def custom(self) -> list[Any]:
        return []

    def writer(self) -> Any:
        return Objects(None)


CILIUM = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\n"


def test_apply_reads_the_standard_input_and_warns_of_other_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodenet.lab.client.LabClient", FakeLab)
    result = CliRunner().invoke(root, ["lab", "apply", "--name", "demo", "-f", "-"], input=CILIUM)
    assert result.exit_code == 0, result.output
    assert "WARNING: 1 policy of other APIs is not evaluated and not enforced" in result.stderr
    assert "CiliumNetworkPolicy (1)" in result.stderr


def test_apply_of_a_folder_for_kustomize_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodenet.lab.client.LabClient", FakeLab)
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    result = CliRunner().invoke(root, ["lab", "apply", "--name", "demo", "-f", str(tmp_path)])
    assert result.exit_code == 2
    assert f"kubectl kustomize {tmp_path} | " in result.stderr
    assert "lab apply -f -" in result.stderr
