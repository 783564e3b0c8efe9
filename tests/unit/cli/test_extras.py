"""What an installation without extras does with commands that need them: one sentence, exit code 3, no traceback."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nodenet.cli import extras
from nodenet.errors import CannotRunError

ROOT = Path(__file__).parents[3]
SHOP = ROOT / "examples" / "shop"
# The modules of projects whose module has another name.
_MODULES = {"prometheus-client": "prometheus_client", "dnspython": "dns"}


def projects(extra: str) -> set[str]:
    """What pip installs for an extra of ours, those of the extras in it too."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = set()
    for requirement in table[extra]:
        inner = re.fullmatch(r"nodenet\[(\w+)\]", requirement)
        found |= projects(inner[1]) if inner else {re.split(r"[><=~! ]", requirement)[0]}
    return found


@pytest.mark.parametrize("extra", sorted(extras.EXTRAS))
def test_the_extras_bring_the_modules_that_are_asked_for(extra):
    assert {_MODULES.get(name, name) for name in projects(extra)} == set(extras.EXTRAS[extra])


def without(modules: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """`nodenet WORDS` in a Python that does not have `modules`."""
    code = (
        f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"
        f"from nodenet.cli.main import main\nmain({list(words)!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text("node_name: n1\n")
    return str(path)


@pytest.mark.parametrize("missing", extras.EXTRAS["agent"])
def test_the_agent_names_its_extra(config, missing):
    done = without((missing,), "agent", "--config", config)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(
        r"nodenet: nodenet agent needs the extra 'agent', which is not installed: .*pip install 'nodenet\[agent\]'\n",
        done.stderr,
    )


@pytest.mark.parametrize("missing", extras.EXTRAS["lab"])
def test_a_lab_names_its_extra_before_it_makes_anything(missing):
    """pyroute2 is imported by the daemon alone, in a process of its own."""
    done = without((missing,), "lab", "up", "--name", "never", "-f", str(SHOP))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "nodenet lab up needs the extra 'lab'" in done.stderr
    assert not Path("/run/nodenet/lab/never").exists()


@pytest.mark.parametrize("missing", extras.EXTRAS["bench"])
def test_the_benchmark_names_its_extra(missing):
    done = without((missing,), "bench")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "nodenet bench needs the extra 'bench'" in done.stderr


EVERYTHING = tuple({module for modules in extras.EXTRAS.values() for module in modules})


@pytest.mark.parametrize(
    "words",
    [
        ("policy", "explain", "-f", str(SHOP), "--from", "shop/web", "--to", "svc/api.shop", "--port", "80"),
        ("policy", "lint", "-f", str(SHOP)),
        ("policy", "matrix", "-f", str(SHOP), "-o", "yaml"),
        ("lab", "up", "--help"),
        ("bench", "--help"),
        ("bpf", "build", "--help"),
        ("trace", "drops", "--help"),
        ("cni", "leases"),
    ],
)
def test_the_core_needs_no_extra(words):
    done = without((*EVERYTHING, "bcc"), *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_agents_configuration_is_checked_without_its_extra(config):
    done = without(EVERYTHING, "agent", "--check", "--config", config)
    assert done.stdout.startswith(f"{config}: valid: node n1\n")
    # Then it says whether the agent can start on this machine.
    assert (done.returncode, "the agent can start" in done.stdout) in ((0, True), (3, False))
    assert "extra" not in done.stderr


@pytest.mark.parametrize("words", [("observe", "--last", "1"), ("status",)])
def test_without_an_agent_the_core_says_that_it_does_not_answer(tmp_path, words):
    done = without(EVERYTHING, *words, "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 3
    assert "none.sock" in done.stderr
    assert "extra" not in done.stderr


def test_a_module_that_no_extra_brings_is_not_explained_away():
    assert extras.missing_extra(ModuleNotFoundError(name="nodenet.gone"), "lab", "lab") is None
    assert extras.missing_extra(ModuleNotFoundError(name="matplotlib"), "lab", "lab") is None
    assert isinstance(extras.missing_extra(ModuleNotFoundError(name="aiohttp.web"), "lab", "lab"), CannotRunError)


def test_policy_starts_without_the_heavy_modules():
    code = (
        "import sys\nimport nodenet.cli.policy\n"
        "print(sorted({'grpc', 'google.protobuf', 'msgspec', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
