"""Reads Kubernetes YAML and JSON from files, folders and the standard input into plain objects with their source.

Kinds are not checked here.
"""

from __future__ import annotations

import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import yaml

from nodenet.errors import BadInputError

# The name that means the standard input.
STDIN = "-"
_SUFFIXES = (".yaml", ".yml", ".json")
_GZIP = b"\x1f\x8b"
_SPACE = re.compile(r"[ \t\r\n]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# A folder with one of these files is the input of another tool: what it makes of the folder is wanted, not its parts.
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_CHART = "Chart.yaml"
# The largest text, in bytes, after decompression: a small gzip file can hold any number of zeros.
MAX_BYTES = 1 << 30
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
# The largest number of YAML nodes that the aliases of one text may add: nested aliases can double the number with each
# line ("billion laughs").
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
    """The documents of a YAML or JSON text as plain values. Raises yaml.YAMLError, also if the text is nested too
    deeply, is too large after expanding aliases, or contains an anchor that includes itself."""
    found = _json_documents(text)
    if found is not None:
        return found
    _require_bounded(text)
    return list(yaml.load_all(text, Loader=_Loader))


def _json_documents(text: str) -> list[object] | None:
    """The values of a JSON text, one or several in a row; None if it is not JSON: YAML may begin with a brace too.

    This is for dumps of whole clusters: 3,000 pods take 0.1 s as JSON and 6 s as YAML.
    """
    decoder, found = json.JSONDecoder(), list[object]()
    place = _end_of_space(text, 0)
    if not text.startswith("{", place):
        return None
    try:
        while place < len(text):
            value, end = decoder.raw_decode(text, place)
            found.append(value)
            place = _end_of_space(text, end)
    except (json.JSONDecodeError, RecursionError):
        return None
    _require_shallow(found)
    return found


def _end_of_space(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _require_shallow(level: list[Any]) -> None:
    """Later readers recurse, so JSON has the limit of YAML."""
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def _require_bounded(text: str) -> None:
    """Count the nodes of the text without building the values. An alias counts as many nodes as its anchor."""
    sizes: dict[str, int] = {}
    # Anchor and number of nodes of each open collection; the first entry is the whole text.
    stack: list[tuple[str | None, int]] = [(None, 0)]
    written = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            written += 1
            stack.append((event.anchor, 1))
            if len(stack) > MAX_DEPTH:
                raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, size = stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            written += 1
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
        # Compare with what is written out: a dump of a large cluster has more nodes than this without any alias.
        if before + size > MAX_NODES + written:
            raise yaml.YAMLError(f"more than {MAX_NODES} values when its aliases are written out")


def load(paths: Iterable[str | Path], command: str = "nodenet COMMAND") -> list[Manifest]:
    """Every object of the files and of the folders' .yaml, .yml and .json files (recursively, sorted by path), also
    with a further .gz. `-` is the standard input. A `List` is unpacked.

    Raises BadInputError naming file, line and field if any object is invalid, and for a URL or a folder that is the
    input of kustomize or Helm, with the command that makes manifests of it and pipes them into `command`.
    """
    found: list[Manifest] = []
    for path in paths:
        for source, stream in _streams(str(path), command):
            with stream:
                found.extend(_read(source, stream))
    return found


def text_of(path: str) -> str:
    """The text of one file, or of the standard input (`-`), decompressed if it is gzip. Raises BadInputError."""
    for source, stream in _streams(path, "nodenet COMMAND"):
        with stream:
            try:
                return _text(source, stream)
            except UnicodeDecodeError as error:
                raise BadInputError(f"{source}: not UTF-8 text: {error.reason} at byte {error.start}") from error
            except OSError as error:
                raise BadInputError(f"{source}: {error.strerror}") from error
    raise BadInputError(f"{path}: expected a file")


def _streams(path: str, command: str) -> Iterator[tuple[str, BinaryIO]]:
    if path == STDIN:
        yield "standard input", io.BytesIO(sys.stdin.buffer.read(MAX_BYTES + 1))
        return
    if _URL.match(path):
        raise BadInputError(f"{path}: expected a file or a folder, not a URL", f"curl -fsSL {path} | {command} -f -")
    for file in _files(Path(path), command):
        try:
            yield str(file), file.open("rb")
        except OSError as error:
            raise BadInputError(f"{file}: {error.strerror}") from error


def _files(path: Path, command: str) -> list[Path]:
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder", "give a YAML file or a folder with YAML files")
    if not path.is_dir():
        _refuse_tool_input(path.parent, [path], command)
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file())
    _refuse_tool_input(path, files, command)
    return [file for file in files if file.name.removesuffix(".gz").endswith(_SUFFIXES)]


def _refuse_tool_input(path: Path, files: Iterable[Path], command: str) -> None:
    """Raises BadInputError if one of the files makes its folder the input of kustomize or Helm."""
    for file in files:
        folder = file.parent
        inside = "" if folder == path else f" (in {folder.relative_to(path)}/)"
        if file.name in _KUSTOMIZATIONS:
            raise BadInputError(
                f"{path}: has a {file.name}{inside}: these files are parts, and kustomize makes the objects of them",
                f"kubectl kustomize {folder} | {command} -f -",
            )
        if file.name == _CHART:
            raise BadInputError(
                f"{path}: is a Helm chart{inside}: its files are templates, and Helm makes the objects of them",
                f"helm template RELEASE {folder} | {command} -f -",
            )


def _read(source: str, stream: BinaryIO) -> Iterator[Manifest]:
    try:
        found = documents(_text(source, stream))
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise BadInputError(f"{source}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInputError(f"{source}:{where} not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not YAML: {error}") from error
    for number, document in enumerate(found, 1):
        # An empty document, for example after a trailing ---.
        if document is None:
            continue
        name = source if len(found) == 1 else f"{source} (document {number})"
        yield from _objects(document, name)


def _text(source: str, stream: BinaryIO) -> str:
    """The text of a file, decompressed if it begins as a gzip file does."""
    data = stream.read(MAX_BYTES + 1)
    if data.startswith(_GZIP):
        data = _gunzipped(source, data)
    if len(data) > MAX_BYTES:
        raise BadInputError(f"{source}: expected at most {MAX_BYTES >> 20} MiB of text")
    return data.decode()


def _gunzipped(source: str, data: bytes) -> bytes:
    """All members of a gzip file, up to MAX_BYTES and one."""
    found = bytearray()
    while data and len(found) <= MAX_BYTES:
        unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            found += unzip.decompress(data, MAX_BYTES + 1 - len(found))
        except zlib.error as error:
            raise BadInputError(f"{source}: not a gzip file: {error}") from error
        if not unzip.eof and len(found) <= MAX_BYTES:
            raise BadInputError(f"{source}: the gzip file ends too early")
        data = unzip.unused_data
    return bytes(found)


def _objects(document: object, source: str) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise BadInputError(f"{source}: expected a Kubernetes object, got {type(document).__name__}")
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str):
            raise BadInputError(f"{source}: {field}: required, expected text")
    # Also PodList and similar kinds, which API servers return. Their items have neither apiVersion nor kind.
    kind = document["kind"].removesuffix("List")
    if kind != document["kind"] and isinstance(document.get("items"), list):
        own = {"apiVersion": document["apiVersion"], "kind": kind} if kind else {}
        for index, item in enumerate(document["items"]):
            whole = {**own, **item} if isinstance(item, dict) else item
            yield from _objects(whole, f"{source} items[{index}]")
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise BadInputError(f"{source}: {document['kind']}: metadata.name: required, expected text")
    yield Manifest(source, document)
