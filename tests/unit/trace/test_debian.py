"""Where BCC is looked for, and what is said where it is not."""

from __future__ import annotations

import sys

import pytest

from nodenet.errors import CannotRunError
from nodenet.trace.debian import load_bcc


@pytest.fixture(autouse=True)
def _no_bcc_here(monkeypatch, tmp_path):
    """An environment without BCC; afterwards the one that there was."""
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "environment")])
    yield
    sys.modules.pop("bcc", None)


def package(folder, text):
    (folder / "bcc").mkdir(parents=True)
    (folder / "bcc" / "__init__.py").write_text(text)
    (folder / "bcc" / "inner.py").write_text("class BPF: pass")
    return folder


def test_where_it_is_missing_one_sentence_says_what_to_install(tmp_path):
    with pytest.raises(CannotRunError) as caught:
        load_bcc(tmp_path)
    assert str(caught.value).endswith("not on PyPI: apt-get install python3-bpfcc")
    assert (caught.value.exit_code, caught.value.hint) == (3, "")


def test_the_systems_package_is_found_from_an_environment_that_does_not_see_it(tmp_path):
    module = load_bcc(package(tmp_path / "system", "from .inner import BPF"))
    assert module.BPF.__module__ == "bcc.inner"
    assert "bcc" in sys.modules


def test_the_environments_own_comes_first(tmp_path):
    package(tmp_path / "environment", "from .inner import BPF; mine = True")
    assert load_bcc(package(tmp_path / "system", "from .inner import BPF")).mine


def test_another_project_of_that_name_is_told_apart(tmp_path):
    package(tmp_path / "environment", "")
    with pytest.raises(CannotRunError, match="another project named bcc"):
        load_bcc(tmp_path)


@pytest.mark.parametrize("where", ["environment", "system"])
def test_a_bcc_without_its_library_is_no_traceback(tmp_path, where):
    package(tmp_path / where, "raise OSError('libbcc.so.0: cannot open shared object file')")
    with pytest.raises(CannotRunError, match=r"libbcc\.so\.0"):
        load_bcc(tmp_path / "system")
    assert "bcc" not in sys.modules
