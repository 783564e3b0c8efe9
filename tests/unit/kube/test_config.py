"""Kubeconfigs and service accounts, and what is said when something is missing."""

from __future__ import annotations

import base64
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.errors import BadInputError, CannotRunError
from nodenet.kube import config as kube_config
from nodenet.kube.config import from_kubeconfig, in_cluster, load


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A certificate and its key."""
    folder = tmp_path_factory.mktemp("pki")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=x"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True
    )
    return (folder / "crt").read_bytes(), (folder / "key").read_bytes()


def write(folder: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **more: Any) -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        **more,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_certificates_from_data_and_from_files(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    certificate, key = pair
    (tmp_path / "ca.crt").write_bytes(certificate)
    encoded = {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    access = from_kubeconfig(write(tmp_path, {"certificate-authority": "ca.crt", "tls-server-name": "api"}, encoded))
    assert access.server == "https://10.0.0.1:6443"
    assert access.server_name == "api"
    assert access.ssl is not None
    assert access.ssl.verify_mode == ssl.CERT_REQUIRED
    assert access.ssl.get_ca_certs()


def test_plain_http_with_a_token(tmp_path: Path) -> None:
    access = from_kubeconfig(write(tmp_path, {"server": "http://127.0.0.1:8080"}, {"token": "t"}))
    assert (access.ssl, access.bearer()) == (None, "t")
    (tmp_path / "token").write_text("from file\n")
    access = from_kubeconfig(write(tmp_path, {"server": "http://127.0.0.1:8080"}, {"tokenFile": "token"}))
    assert access.bearer() == "from file"


def test_insecure(tmp_path: Path) -> None:
    access = from_kubeconfig(write(tmp_path, {"insecure-skip-tls-verify": True}))
    assert access.ssl is not None
    assert access.ssl.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("cluster", "user", "more", "message"),
    [
        ({"server": ""}, {}, {}, "cluster.server: required"),
        ({"server": "10.0.0.1"}, {}, {}, "cluster.server: expected http"),
        ({}, {"exec": {"command": "aws"}}, {}, "users[u].exec: not supported"),
        ({}, {"client-key-data": "x"}, {}, "user.client-key-data: not base64"),
        ({}, {"client-certificate-data": "eA=="}, {}, "one is missing"),
        ({"certificate-authority": "nowhere"}, {}, {}, "nowhere: No such file"),
        ({"certificate-authority-data": "eA=="}, {}, {}, "certificate-authority: not a certificate"),
        ({}, {}, {"current-context": "d"}, "contexts: no entry has the name 'd'"),
        ({}, {}, {"current-context": None}, "current-context: required"),
        ({}, {}, {"clusters": 7}, "clusters: no entry has the name 'k'"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(tmp_path: Path, cluster: Any, user: Any, more: Any, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        from_kubeconfig(write(tmp_path, cluster, user, **more))
    assert message in str(caught.value)
    assert str(tmp_path / "kubeconfig") in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "a: b: c"])
def test_what_is_no_kubeconfig(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(BadInputError):
        from_kubeconfig(tmp_path / "k")
    with pytest.raises(BadInputError, match="No such file"):
        from_kubeconfig(tmp_path / "nothing")


def test_in_cluster(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(CannotRunError, match="not a pod"):
        in_cluster({}, tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(CannotRunError, match="token: missing"):
        in_cluster(environ, tmp_path)
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(pair[0])
    access = in_cluster(environ, tmp_path)
    assert (access.server, access.bearer()) == ("https://[fd00::1]:443", "t")


def test_servers_of_the_configuration_replace_the_service(
    tmp_path: Path, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(pair[0])
    monkeypatch.setattr(kube_config, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    access = load(None, ["10.0.0.1:6443", "https://[fd00::1]:6443/", "api.example"], "kubernetes.default.svc")
    assert access.servers == ("https://10.0.0.1:6443", "https://[fd00::1]:6443", "https://api.example:443")
    assert (access.server_name, access.bearer(), access.by_service) == ("kubernetes.default.svc", "t", False)
    assert in_cluster({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path).by_service
    assert access.ssl is not None


def test_servers_replace_that_of_a_kubeconfig(tmp_path: Path) -> None:
    path = write(tmp_path, {"tls-server-name": "api"}, {"token": "t"})
    access = load(path, ["10.0.0.2:6443"])
    assert (access.servers, access.server_name, access.token) == (("https://10.0.0.2:6443",), "api", "t")
    assert load(path).servers == ("https://10.0.0.1:6443",)
    with pytest.raises(BadInputError, match="no certificate authority"):
        load(write(tmp_path, {"server": "http://127.0.0.1:8080"}), ["10.0.0.2:6443"])


@pytest.mark.parametrize("text", ["", "ftp://x", "https://", "a:b", "http://x/path", "x:99999"])
def test_a_server_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInputError, match="api_servers: expected host:port or a URL"):
        load(write(tmp_path), [text])


def test_an_authority_that_is_replaced_is_read_again(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(pair[0])
    access = in_cluster({}, tmp_path, ["https://10.0.0.1:6443"])
    assert access.ssl is not None
    before = len(access.ssl.get_ca_certs())
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=y"
    subprocess.run(
        [*command.split(), "-keyout", tmp_path / "k", "-out", tmp_path / "ca.crt"], check=True, capture_output=True
    )
    access.read_authority()
    assert len(access.ssl.get_ca_certs()) == before + 1
