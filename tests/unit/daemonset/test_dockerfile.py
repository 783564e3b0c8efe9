"""What the Dockerfile and the build script take from the checkout, and what they must not name."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
DAEMONSET = ROOT / "daemonset"
DOCKERFILE = (DAEMONSET / "Dockerfile").read_text()


def test_what_is_copied_exists() -> None:
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    assert {"nodenet", "bpf", "cni-bin", "pyproject.toml"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {word.removeprefix("!") for word in ignored if word.startswith("!")} == set(copied)
    # hatchling puts them into the wheel.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {name.partition("/")[0] for name in (*wheel["packages"], *wheel["force-include"])} <= set(copied)


def test_slim_has_no_compiler() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    assert list(stages) == ["base", "build", "slim", "full"]
    assert "clang" not in stages["base"] + stages["slim"]
    assert "clang" in stages["build"]
    assert "clang" in stages["full"]


def test_versions_agree() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for file, line in {
        "base/kustomization.yaml": f"newTag: {version[1]}-slim",
        "chart/Chart.yaml": f"version: {version[1]}",
    }.items():
        assert line in (DAEMONSET / file).read_text(), file


def test_scripts_are_valid() -> None:
    for script in (DAEMONSET / "build", ROOT / "tests" / "image" / "make-node-root"):
        subprocess.run(["bash", "-n", script], check=True)
