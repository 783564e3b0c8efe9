"""Kubernetes YAML from files and folders, as plain objects that remember where they stood. No kinds are judged here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from nodenet.errors import BadInputError

_SUFFIXES = (".yaml", ".yml", ".json")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: JSON has no dates, so an unquoted one is text."""

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


def load(paths: Iterable[Path]) -> list[Manifest]:
    """Every object of the files and of the folders' .yaml, .yml and .json files (recursively, sorted by path).

    A `List` is unpacked. Raises BadInputError naming file, line and field: nothing is returned from a partly bad set.
    """
    found: list[Manifest] = []
    for path in paths:
        for file in _files(path):
            found.extend(_read(file))
    return found


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder", "give a YAML file or a folder of them")
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    else:
        yield path


def _read(file: Path) -> Iterator[Manifest]:
    try:
        documents = list(yaml.load_all(file.read_text(), Loader=_Loader))
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
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        source = str(file) if len(documents) == 1 else f"{file} (document {number})"
        yield from _objects(document, source)


def _objects(document: object, source: str) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: expected a Kubernetes object, got {type(document).__name__}")
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str):
            raise BadInputError(f"{source}: {field}: required, expected text")
    if document["kind"].endswith("List") and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            yield from _objects(item, f"{source} items[{index}]")
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise BadInputError(f"{source}: {document['kind']}: metadata.name: required, expected text")
    yield Manifest(source, document)
