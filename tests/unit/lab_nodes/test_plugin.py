"""The lab's pods are attached by the executable that a real node gets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nodenet.cni import bundle
from nodenet.errors import CannotRunError
from nodenet.lab import files, names, up
from nodenet.lab.files import LabFiles


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabFiles:
    monkeypatch.setattr(names, "lab_dir", lambda lab: tmp_path / lab)
    assert files.names is names
    return LabFiles("test")


def test_it_is_installed_and_answers_and_a_build_is_reported(
    lab: LabFiles, bpf_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.build(bpf_cache)
    told: list[str] = []
    monkeypatch.setattr(up, "_CACHE", bpf_cache)
    up.install_plugin(lab, told.append)
    assert told == []
    program = lab.plugins / "nodenet"
    # Static and without Python: what `nodenet cni install` puts on a node.
    assert program.read_bytes()[:4] == b"\x7fELF"
    answer = subprocess.run(
        [program], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True, timeout=20
    ).stdout
    assert json.loads(answer)["supportedVersions"][-1] == "1.1.0"
    # With the compiler's seconds left out.
    monkeypatch.setattr(up, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr(bundle, "_compile_alone", lambda found, folder, target: target.write_text("built"))
    up.install_plugin(lab, told.append)
    assert told == ["CNI plugin: building, once for this version"]
    assert next(lab.plugins.glob(".nodenet-*/alone")).read_text() == "built"


def test_without_a_compiler_it_says_what_to_install(
    lab: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRunError, match="no C compiler is installed") as told:
        up.install_plugin(lab, lambda line: None)
    assert told.value.hint == "apt-get install gcc"
    assert not lab.plugins.exists()
