"""Reads Kubernetes YAML from files and folders into plain objects with their source. Kinds are not checked here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from nodenet.errors import BadInputError

_SUFFIXES = (".yaml", ".yml", ".json")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
# The largest number of YAML nodes in one text after expanding its aliases: nested aliases can double the number with
# each line ("billion laughs").
MAX_NODES = 2_000_000
# The C loader recurses without a limit: 100,000 nested brackets crash the process.
MAX_DEPTH = 250


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A YAML loader without dates: Kubernetes converts YAML to JSON, which has none, so an unquoted date is a
    string."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object. `source` is "file" or "file (document N)" for messages."""

    source: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.data["kind"])

    @property
    def api_version(self) -> str:
        return str(self.data["apiVersion"])

    @property
    def name(self) -> str:
        return str(self.data["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """metadata.namespace, or "" where the manifest has none."""
        return str(self.data["metadata"].get("namespace") or "")

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


def documents(text: str) -> list[object]:
    """The documents of a YAML text as plain values. Raises yaml.YAMLError, also if the text is nested too deeply, is
    too large after expanding aliases, or contains an anchor that includes itself."""
    _require_bounded(text)
    return list(yaml.load_all(text, Loader=_Loader))


def _require_bounded(text: str) -> None:
    """Count the nodes of the text without building the values. An alias counts as many nodes as its anchor."""
    sizes: dict[str, int] = {}
    # Anchor and number of nodes of each open collection; the first entry is the whole text.
    stack: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            stack.append((event.anchor, 1))
            if len(stack) > MAX_DEPTH:
                raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, size = stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if any(open_anchor == event.anchor for open_anchor, _ in stack):
                raise yaml.YAMLError(f"the anchor {event.anchor!r} contains itself")
            # An undefined anchor counts 1: the loader reports it later.
            anchor, size = None, sizes.get(str(event.anchor), 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, before = stack[-1]
        stack[-1] = (outer, before + size)
        if before + size > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values when its aliases are written out")


def load(paths: Iterable[Path]) -> list[Manifest]:
    """Every object of the files and of the folders' .yaml, .yml and .json files (recursively, sorted by path).

    A `List` is unpacked. Raises BadInputError naming file, line and field if any object is invalid.
    """
    found: list[Manifest] = []
    for path in paths:
        for file in _files(path):
            found.extend(_read(file))
    return found


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder", "give a YAML file or a folder with YAML files")
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    else:
        yield path


def _read(file: Path) -> Iterator[Manifest]:
    try:
        found = documents(file.read_text())
    except UnicodeDecodeError as error:
        raise BadInputError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInputError(f"{file}:{where} not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{file}: not YAML: {error}") from error
    for number, document in enumerate(found, 1):
        # An empty document, for example after a trailing ---.
        if document is None:
            continue
        source = str(file) if len(found) == 1 else f"{file} (document {number})"
        yield from _objects(document, source)


def _objects(document: object, source: str) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: expected a Kubernetes object, got {type(document).__name__}")
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str):
            raise BadInputError(f"{source}: {field}: required, expected text")
    # Also PodList and similar kinds, which API servers return.
    if document["kind"].endswith("List") and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            yield from _objects(item, f"{source} items[{index}]")
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise BadInputError(f"{source}: {document['kind']}: metadata.name: required, expected text")
    yield Manifest(source, document)
