"""cni-bin/quick: the self-contained plugin's stand-ins for parts of the standard library do what the library does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import bundle
from nodenet.cni.patterns import patterns

QUICK = bundle.source_dir() / "quick"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"quick_{name}", QUICK / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[dataclasses, load("dataclasses")], ids=["library", "quick"])
def made(request: pytest.FixtureRequest) -> Any:
    """The same classes by the library's decorator and by ours."""
    library = request.param

    @library.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        many: list[int] = library.field(default_factory=list)

        @property
        def total(self) -> int:
            return self.x + self.y

    @library.dataclass(frozen=True, slots=True)
    class Named(Point):
        name: str = "p"
        note: int = library.field(default=0, compare=False)

    @library.dataclass
    class Loose:
        x: int
        y: int = 5

        def __post_init__(self) -> None:
            self.x += 1

    return types.SimpleNamespace(Point=Point, Named=Named, Loose=Loose, replace=library.replace)


def test_dataclasses(made: Any) -> None:
    point = made.Point(1)
    assert (point.x, point.y, point.many, point.total) == (1, 2, [], 3)
    assert point == made.Point(x=1, y=2)
    assert point != made.Point(1, 3)
    assert point != made.Named(1)
    assert point.many is not made.Point(1).many
    assert repr(point).endswith("Point(x=1, y=2, many=[])")
    assert made.replace(point, y=7).total == 8
    assert hash(made.Named(1, 2, (), "a")) == hash(made.Named(1, 2, (), "a"))
    assert made.Named(1).name == "p"
    noted = made.Named(1, 2, (), "a", note=5)
    assert (noted.note, noted) == (5, made.Named(1, 2, (), "a"))
    assert hash(noted) == hash(made.Named(1, 2, (), "a"))
    assert not hasattr(point, "__dict__")
    with pytest.raises(AttributeError):
        point.x = 3
    for arguments, words in (((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})):
        with pytest.raises(TypeError):
            made.Point(*arguments, **words)
    loose = made.Loose(1)
    loose.y = 6
    assert (loose.x, loose.y) == (2, 6)
    with pytest.raises(TypeError, match="unhashable"):
        hash(loose)
    match made.Point(3, 4):
        case made.Point(x, y):
            assert (x, y) == (3, 4)


def test_what_the_quick_dataclasses_cannot_do_is_refused() -> None:
    quick = load("dataclasses")
    with pytest.raises(TypeError):
        quick.dataclass(order=True)
    with pytest.raises(TypeError):
        quick.field(repr=False)


def test_named_tuples() -> None:
    typing = load("typing")

    class Pair(typing.NamedTuple):  # type: ignore[misc, name-defined]
        """Words."""

        left: str
        right: int = 4

        def both(self) -> str:
            return f"{self.left}{self.right}"

    assert Pair("a") == ("a", 4)
    assert (Pair("a", 1).both(), Pair._fields, isinstance(Pair("b"), tuple)) == ("a1", ("left", "right"), True)


def test_expressions_are_the_librarys() -> None:
    found = patterns({name: source.path for name, source in bundle._modules().items()})
    assert len(found) > 5
    sre: Any = importlib.import_module("_sre")
    for (pattern, flags), (number, code, *rest) in found.items():
        whole = re.compile(pattern, flags)
        ours = sre.compile(pattern, number, list(code), *rest)
        assert (ours.flags, ours.groups, ours.groupindex) == (whole.flags, whole.groups, whole.groupindex)
        for text in ("", "eth0", '"a\\n"', "0a:58:0a:00:00:02", "10.5.0.0", "a-b.c_d", "-1.5e3"):
            subject: Any = text.encode() if isinstance(pattern, bytes) else text
            mine, theirs = ours.match(subject), whole.match(subject)
            assert (mine and mine.groups(), mine and mine.span()) == (
                theirs and theirs.groups(),
                theirs and theirs.span(),
            )


def test_the_plugin_starts_with_them_alone() -> None:
    """No library module that a stand-in replaces is loaded on the way to an answer."""
    program = """
import sys, json
before = set(sys.modules)
sys.path[:0] = [sys.argv[1], sys.argv[2]]
for name in list(sys.modules):
    if name in ("re", "signal", "socket", "typing", "logging", "dataclasses", "traceback"):
        del sys.modules[name]
sys.modules["_nodenet_patterns"] = type(sys)("_nodenet_patterns")
sys.modules["_nodenet_patterns"].PATTERNS = eval(sys.stdin.read())
import urllib, urllib_parse
sys.modules["urllib.parse"] = urllib_parse
import nodenet.cni.alone, nodenet.cni.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    table = patterns({name: source.path for name, source in bundle._modules().items()})
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program, str(QUICK), str(Path(bundle.__file__).parents[2])],
        input=repr(table),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    slow = {
        "inspect",
        "ast",
        "re._compiler",
        "re._parser",
        "subprocess",
        "tempfile",
        "threading",
        "asyncio",
        "pyroute2",
    }
    assert loaded & (slow | {name for name in loaded if name.startswith("_whole")}) == set()
