"""Kubernetes YAML from files: what is read, and how bad input is told."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from nodenet import manifests
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
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 250 deep"),
    ],
)  # fmt: skip
def test_a_text_that_grows_without_end_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        load([write(tmp_path, "a.yaml", text)])


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = POD % "x" + "spec: {a: &a {k: [1, 2]}, b: *a, c: {<<: *a, l: &b 3}, d: *b}\n"
    (manifest,) = load([write(tmp_path, "a.yaml", text)])
    assert manifest.data["spec"] == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}, "c": {"k": [1, 2], "l": 3}, "d": 3}


def test_many_values_without_aliases_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump of a large cluster has more values than aliases may add."""
    monkeypatch.setattr(manifests, "MAX_NODES", 100)
    plain = POD % "x" + "spec:\n" + "".join(f"  k{number}: v\n" for number in range(300))
    assert len(load([write(tmp_path, "a.yaml", plain)])[0].data["spec"]) == 300
    with pytest.raises(BadInputError, match="more than 100 values"):
        load([write(tmp_path, "a.yaml", _laughs("&a0 [x]", "[{}]"))])


def pod_json(name: str) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}})


def test_json_values_in_a_row(tmp_path: Path) -> None:
    found = load([write(tmp_path, "a.json", f"\n{pod_json('one')}\n{pod_json('two')}\n")])
    assert [str(m) for m in found] == ["Pod shop/one", "Pod shop/two"]
    assert found[1].source == f"{tmp_path / 'a.json'} (document 2)"


def test_the_items_of_an_api_list_have_its_kind(tmp_path: Path) -> None:
    """`kubectl get --raw` prints what the API server answers."""
    items = [{"metadata": {"name": "a"}}, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}}]
    text = json.dumps({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": items})
    found = load([write(tmp_path, "a.json", text)])
    assert [(m.api_version, str(m)) for m in found] == [("apps/v1", "Deployment a"), ("v1", "Service b")]
    with pytest.raises(BadInputError, match=r"items\[0\]: apiVersion: required"):
        load([write(tmp_path, "b.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))])


def test_yaml_that_begins_with_a_brace(tmp_path: Path) -> None:
    (found,) = load([write(tmp_path, "a.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: x}}")])
    assert str(found) == "Pod x"


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, (POD % "one").encode())
    (found,) = load(["-"])
    assert (str(found), found.source) == ("Pod shop/one", "standard input")
    stdin(monkeypatch, b"kind: Pod\n")
    with pytest.raises(BadInputError, match="standard input: apiVersion: required"):
        load(["-"])


def test_gzip_files_and_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress((POD % "one").encode()) + gzip.compress(("---\n" + POD % "two").encode())
    (tmp_path / "a.yaml.gz").write_bytes(packed)
    (tmp_path / "b.gz").write_bytes(b"not of a known name: folders skip it")
    assert [str(m) for m in load([tmp_path])] == ["Pod shop/one", "Pod shop/two"]
    stdin(monkeypatch, packed)
    assert len(load(["-"])) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (gzip.compress(b"kind: Pod")[:-5], "a.yaml: the gzip file ends too early"),
        (b"\x1f\x8bnot gzip at all", "a.yaml: not a gzip file"),
        (gzip.compress(b" " * 5000), "a.yaml: expected at most 0 MiB of text"),
        (zlib.compress(b"kind: Pod"), "a.yaml: not UTF-8"),
    ],
)
def test_bad_gzip(tmp_path: Path, data: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_BYTES", 4000)
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(BadInputError, match=sentence):
        load([tmp_path / "a.yaml"])


@pytest.mark.parametrize("url", ["https://example.org/a.yaml", "http:/example.org/a.yaml", "file:///a.yaml"])
def test_a_url_is_refused_as_it_was_written(url: str) -> None:
    with pytest.raises(BadInputError, match="not a URL") as caught:
        load([url], "nodenet policy lint")
    assert str(caught.value).startswith(url + ": ")
    assert caught.value.hint == f"curl -fsSL {url} | nodenet policy lint -f -"


@pytest.mark.parametrize(
    ("marker", "hint"),
    [
        ("kustomization.yaml", "kubectl kustomize {folder} | nodenet policy lint -f -"),
        ("kustomization.yml", "kubectl kustomize {folder} | nodenet policy lint -f -"),
        ("Kustomization", "kubectl kustomize {folder} | nodenet policy lint -f -"),
        ("Chart.yaml", "helm template RELEASE {folder} | nodenet policy lint -f -"),
    ],
)
def test_a_folder_for_kustomize_or_helm_names_the_command(tmp_path: Path, marker: str, hint: str) -> None:
    inner = tmp_path / "all" / "app"
    inner.mkdir(parents=True)
    write(inner, "pod.yaml", POD % "x")
    write(inner, marker, "resources: [pod.yaml]\n")
    for given in (inner, inner / marker, tmp_path):
        with pytest.raises(BadInputError, match=marker if "Chart" not in marker else "Helm chart") as caught:
            load([given], "nodenet policy lint")
        assert caught.value.hint == hint.format(folder=inner)
    # A file that is named is read, whatever lies beside it.
    assert [str(m) for m in load([inner / "pod.yaml"])] == ["Pod shop/x"]
