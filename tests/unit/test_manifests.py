"""Kubernetes YAML from files: what is read, and how bad input is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.errors import BadInputError
from nodenet.manifests import load


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop}\n"


def test_folders_documents_and_lists(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", POD % "one" + "---\n---\n" + POD % "two")
    write(tmp_path, "a.json", '{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Service",'
          '"metadata":{"name":"web"}}]}')  # fmt: skip
    write(tmp_path, "notes.txt", "not YAML: [")
    found = load([tmp_path])
    assert [str(m) for m in found] == ["Service web", "Pod shop/one", "Pod shop/two"]
    assert found[2].source == f"{tmp_path / 'b.yaml'} (document 3)"


def test_unquoted_dates_are_text(tmp_path: Path) -> None:
    (manifest,) = load([write(tmp_path, "a.yaml", POD % "x" + "spec: {since: 2024-01-02, on: 3}\n")])
    assert manifest.data["spec"]["since"] == "2024-01-02"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: Pod\n  bad: [", "a.yaml: line 2, column 6 not YAML"),
        ("- 1\n", "a.yaml: expected a Kubernetes object, got list"),
        ("kind: Pod\n", "a.yaml: apiVersion: required"),
        ("apiVersion: v1\nkind: Pod\n", "a.yaml: Pod: metadata.name: required"),
        (POD % "x" + "---\napiVersion: v1\n", r"a.yaml \(document 2\): kind: required"),
    ],
)
def test_bad_input_names_file_place_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        load([write(tmp_path, "a.yaml", text)])


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        load([tmp_path / "nothing.yaml"])
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="not UTF-8"):
        load([path])


def _laughs(first: str, line: str) -> str:
    """Each line names the one before it ten times."""
    rest = (f"a{n + 1}: &a{n + 1} " + line.format(f"*a{n}," * 10) for n in range(9))
    return "\n".join([f"a0: {first}", *rest, ""])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (_laughs("&a0 [x]", "[{}]"), "more than 2000000 values"),
        (_laughs("&a0 {k: v}", "{{<<: [{}]}}"), "more than 2000000 values"),
        ("a: &a [1, *a]\n", "the anchor 'a' contains itself"),
        ("a: &a {b: {c: *a}}\n", "the anchor 'a' contains itself"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 250 deep"),
        ("- " * 100_000 + "x", "nested more than 250 deep"),
        ("{" + "? {" * 1000, "nested more than"),
    ],
)  # fmt: skip
def test_a_text_that_grows_without_end_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        load([write(tmp_path, "a.yaml", text)])


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = POD % "x" + "spec: {a: &a {k: [1, 2]}, b: *a, c: {<<: *a, l: &b 3}, d: *b}\n"
    (manifest,) = load([write(tmp_path, "a.yaml", text)])
    assert manifest.data["spec"] == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}, "c": {"k": [1, 2], "l": 3}, "d": 3}
