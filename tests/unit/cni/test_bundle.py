"""What the frozen plugin reaches only while it runs: every import and every encoding that its modules name is in it."""

from __future__ import annotations

import ast
import encodings
import encodings.aliases
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from nodenet.cni import bundle

# Encodings that CPython reads and writes without a module.
_BUILT_IN = {"utf_8", "latin_1", "ascii", "utf_16", "utf_32"}
# Error handlers that are there without a module (Python/codecs.c); "namereplace" would need unicodedata.
_HANDLERS = {"strict", "ignore", "replace", "backslashreplace", "xmlcharrefreplace", "surrogateescape", "surrogatepass"}
# Encodings that a library module of the bundle names, in functions that the plugin never calls.
_NEVER_CALLED = {
    "_whole_socket": {"idna"},
    "encodings": {"mbcs", "oem"},
    "_whole_urllib_parse": {"idna"},
    "os": {"mbcs"},
}


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(source.path.read_bytes()) for name, source in bundle._modules().items()}


def ours() -> list[str]:
    return [name for name in trees() if name.partition(".")[0] == "nodenet"]


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but what stands there for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from statements(node)


def imported(name: str) -> Iterator[str]:
    """Modules that a module imports, at its top or in a function."""
    for node in statements(trees()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            assert node.module
            yield node.module
            yield from (inner for alias in node.names if (inner := f"{node.module}.{alias.name}") in trees())


def encodings_of(name: str) -> Iterator[str]:
    """What a module names as an encoding: of encode(), decode() and whatever takes `encoding`."""
    for node in statements(trees()[name]):
        if not isinstance(node, ast.Call):
            continue
        wanted = [word.value for word in node.keywords if word.arg == "encoding"]
        if (isinstance(node.func, ast.Attribute) and node.func.attr in ("encode", "decode")) or (
            isinstance(node.func, ast.Attribute) and node.func.attr == "read_text" and name in ours()
        ):
            wanted += node.args[:1]
        if isinstance(node.func, ast.Name) and node.func.id in ("str", "bytes"):
            wanted += node.args[1:2]
        for value in wanted:
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                plain = encodings.normalize_encoding(value.value.lower())
                yield encodings.aliases.aliases.get(plain, plain)


def handlers_of(name: str) -> Iterator[str]:
    for node in statements(trees()[name]):
        if isinstance(node, ast.Call):
            wanted = [word.value for word in node.keywords if word.arg == "errors"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("encode", "decode", "read_text"):
                wanted += node.args[1:2]
            yield from (v.value for v in wanted if isinstance(v, ast.Constant) and isinstance(v.value, str))


@pytest.mark.parametrize("name", ours())
def test_whatever_our_modules_import_is_in_it(name: str) -> None:
    there = trees().keys() | set(sys.builtin_module_names) | {"_nodenet", "_nodenet_patterns"}
    missing = {module for module in imported(name) if module not in there}
    # What only the agent and tests use, in functions of their own.
    allowed = {"nodenet.link.handle": {"pyroute2"}, "nodenet.link.libc": {"ctypes"}}
    assert missing <= allowed.get(name, set()), missing


def test_every_encoding_is_in_it() -> None:
    there = {name.removeprefix("encodings.") for name in trees() if name.startswith("encodings.")} | _BUILT_IN
    for name in trees():
        assert set(encodings_of(name)) - there <= _NEVER_CALLED.get(name, set()), name
    for name in ours():
        assert set(encodings_of(name)) <= _BUILT_IN, name
        assert set(handlers_of(name)) <= _HANDLERS, name


def test_every_codec_of_the_bundle_can_be_imported() -> None:
    """It needs no module that is not there."""
    there = trees().keys() | set(sys.builtin_module_names)
    for codec in bundle._CODECS:
        assert f"encodings.{codec}" in trees()
        assert set(imported(f"encodings.{codec}")) <= there
