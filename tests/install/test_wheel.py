"""The wheel, built and installed as a user does it: in an environment that sees neither checkout nor system packages.

pip fetches what it needs from its index, as it is set up on this machine. Where it reaches none, this is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "examples" / "shop"
# Building and installing take half a minute here, and minutes behind a slow link.
pytestmark = pytest.mark.timeout(600)
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")


def run(*words: str | Path, cwd: Path, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=seconds, check=False, cwd=cwd, env=environment
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("install")


@pytest.fixture(scope="module")
def wheel(work: Path) -> Path:
    """Built from this checkout. What the build itself needs is fetched first, on its own: only that may be skipped."""
    asked = run(sys.executable, *_PIP, "download", "--no-deps", "--dest", work / "probe", "hatchling", cwd=work)
    if asked.returncode != 0:
        pytest.skip(f"pip reaches no index: {asked.stderr.strip().splitlines()[-1]}")
    built = run(sys.executable, *_PIP, "wheel", "--no-deps", "--wheel-dir", work / "dist", ROOT, cwd=work)
    assert built.returncode == 0, built.stderr
    [found] = (work / "dist").iterdir()
    return found


@dataclass(frozen=True, slots=True)
class Installed:
    """A clean environment with the wheel in it."""

    folder: Path
    work: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def nodenet(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "bin" / "nodenet", *words, cwd=self.work, seconds=60)

    def python_says(self, code: str) -> str:
        done = run(self.python, "-c", code, cwd=self.work, seconds=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(work: Path, wheel: Path) -> Installed:
    made = Installed(work / "env", work)
    created = run("/usr/bin/python3", "-m", "venv", made.folder, cwd=work)
    assert created.returncode == 0, created.stderr
    done = run(made.python, *_PIP, "install", "--no-compile", wheel, cwd=work)
    assert done.returncode == 0, done.stderr
    return made


def test_the_manifests_are_in_the_wheel(installed: Installed):
    """Rendering needs no cluster, no kubectl and no extra."""
    shown = installed.nodenet("install", "--dry-run", "--overlay", "kind", "--set", "monitoring.enabled=true")
    assert shown.returncode == 0, shown.stderr
    kinds = {line.partition(": ")[2] for line in shown.stdout.splitlines() if line.startswith("kind: ")}
    assert {"Namespace", "DaemonSet", "ConfigMap", "ServiceMonitor"} <= kinds
    listed = installed.nodenet("connectivity", "test", "--list")
    assert "pod-to-pod-other-node" in listed.stdout, listed.stderr


def test_the_environment_has_the_core_alone(installed: Installed):
    asked = ("aiohttp", "prometheus_client", "pyroute2", "matplotlib", "scapy", "bcc")
    code = f"from importlib.util import find_spec; print([name for name in {asked!r} if find_spec(name)])"
    assert installed.python_says(code) == "[]"


def test_policy_works(installed: Installed):
    words = ("policy", "explain", "-f", SHOP, "--to", "svc/api.shop", "--port", "80")
    allowed = installed.nodenet(*words, "--from", "shop/web")
    assert (allowed.returncode, allowed.stderr) == (0, "")
    assert "ALLOWED" in allowed.stdout
    denied = installed.nodenet(*words, "--from", "attacker/mallory")
    assert denied.returncode == 1
    assert "DENIED" in denied.stdout


@pytest.mark.parametrize("command", ["observe", "status"])
def test_what_asks_an_agent_starts(installed: Installed, command: str):
    done = installed.nodenet(command, "--socket", installed.work / "none.sock")
    assert done.returncode == 3
    assert "none.sock" in done.stderr.splitlines()[0]


@pytest.mark.parametrize(("extra", "words"), [("lab", ("lab", "up", "--name", "wheel")), ("bench", ("bench",))])
def test_a_missing_extra_is_named_with_its_command(installed: Installed, extra: str, words: tuple[str, ...]):
    done = installed.nodenet(*words)
    assert (done.returncode, done.stdout) == (3, "")
    [sentence] = done.stderr.splitlines()
    assert sentence.endswith(f"pip install 'nodenet[{extra}]'")


def test_the_agent_names_its_extra(installed: Installed):
    config = installed.work / "agent.yaml"
    config.write_text("node_name: n1\n")
    done = installed.nodenet("agent", "--config", config)
    assert done.returncode == 3
    assert done.stderr.rstrip().endswith("pip install 'nodenet[agent]'")


def test_perf_is_installed_and_the_fuzzer_is_not(installed: Installed):
    """As perf/__init__.py says."""
    code = (
        "import perf; from importlib.util import find_spec;"
        "print(perf.__file__, bool(find_spec('perf.run')), find_spec('perf.fuzz'))"
    )
    where, run_found, fuzz = installed.python_says(code).split()
    assert Path(where).is_relative_to(installed.folder)
    assert (run_found, fuzz) == ("True", "None")


def test_the_sources_in_c_are_those_of_the_checkout(installed: Installed):
    code = (
        "from nodenet.bpf import build; from nodenet.cni import bundle; print(build.source_dir(), bundle.source_dir())"
    )
    for installed_as, here in zip(installed.python_says(code).split(), ("bpf", "cni-bin"), strict=True):
        assert Path(installed_as).is_relative_to(installed.folder)
        ours = sorted(p.relative_to(ROOT / here) for p in (ROOT / here).rglob("*.[ch]"))
        assert ours == sorted(p.relative_to(installed_as) for p in Path(installed_as).rglob("*.[ch]"))


def test_the_wheel_carries_its_licences(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("LICENSE", "LICENSES/Apache-2.0.txt", "LICENSES/GPL-2.0-only.txt", "LICENSES/BSD-2-Clause.txt"):
        assert any(found.endswith(f".dist-info/licenses/{name}") for found in names), name
    assert not [name for name in names if name.startswith(("tests/", "perf/fuzz/"))]
