"""The cache of compiled objects: when the compiler is started, and when it is not. The compiler is a script here."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.bpf import build
from nodenet.errors import CannotRunError

_COMPILER = """#!/bin/sh
echo called >>"$(dirname "$0")/calls"
while [ "$1" != -o ]; do shift; done
echo object >"$2"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """A clang that counts its calls, the only program on PATH beside the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    clang = folder / "clang"
    clang.write_text(_COMPILER)
    clang.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return clang


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "sources"
    (folder / "lib").mkdir(parents=True)
    (folder / "one.bpf.c").write_text("int a;")
    (folder / "lib" / "b.h").write_text("int b;")
    return folder


def calls(compiler: Path) -> int:
    found = compiler.with_name("calls")
    return len(found.read_text().splitlines()) if found.exists() else 0


def test_the_compiler_is_not_started_for_what_the_cache_has(tmp_path, compiler, sources):
    first = build.build("one", tmp_path / "cache", sources)
    assert (calls(compiler), first.read_text()) == (1, "object\n")
    assert build.build("one", tmp_path / "cache", sources) == first
    assert calls(compiler) == 1


@pytest.mark.parametrize("changed", ["one.bpf.c", "lib/b.h", "lib/new.h"])
def test_changed_sources_are_compiled(tmp_path, compiler, sources, changed):
    first = build.build("one", tmp_path / "cache", sources)
    (sources / changed).write_text("int c;")
    assert build.build("one", tmp_path / "cache", sources) != first
    assert calls(compiler) == 2


def test_another_compiler_is_not_started_for_what_the_cache_has(tmp_path, compiler, sources):
    """The cache of an image was filled by another machine."""
    first = build.build("one", tmp_path / "cache", sources)
    compiler.write_text(_COMPILER + "# newer\n")
    assert build.build("one", tmp_path / "cache", sources) == first
    assert calls(compiler) == 1


def test_other_flags_are_compiled(tmp_path, compiler, sources, monkeypatch):
    first = build.build("one", tmp_path / "cache", sources)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DX"))
    assert build.build("one", tmp_path / "cache", sources) != first


def test_a_machine_without_compiler_uses_the_object_of_the_same_sources(tmp_path, compiler, sources, monkeypatch):
    made = build.build("one", tmp_path / "cache", sources)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.build("one", tmp_path / "cache", sources) == made
    (sources / "one.bpf.c").write_text("int changed;")
    with pytest.raises(CannotRunError, match=r"has one-\w+\.o, and clang is not installed"):
        build.build("one", tmp_path / "cache", sources)


def test_an_object_that_does_not_compile_is_not_kept(tmp_path, compiler, sources):
    compiler.write_text(
        '#!/bin/sh\necho half >"$(while [ "$1" != -o ]; do shift; done; echo "$2")"\necho no >&2; exit 1'
    )
    with pytest.raises(CannotRunError, match="could not compile"):
        build.build("one", tmp_path / "cache", sources)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_objects_of_an_image_come_first(tmp_path, compiler, sources, monkeypatch):
    """The image is read-only and has no compiler. What it lacks is compiled into the cache."""
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "image")
    made = build.build("one", tmp_path / "image", sources)
    assert made.parent == tmp_path / "image"
    assert build.build("one", tmp_path / "cache", sources) == made
    assert calls(compiler) == 1
    (sources / "one.bpf.c").write_text("int changed;")
    assert build.build("one", tmp_path / "cache", sources).parent == tmp_path / "cache"
    assert [path.name for path in (tmp_path / "image").iterdir()] == [made.name]
