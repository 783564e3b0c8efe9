"""The address of the Kubernetes API and our credentials, from a kubeconfig file or the pod's service account."""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from nodenet.errors import BadInputError, CannotRunError
from nodenet.kube import credentials

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECTIONS = {"cluster": "clusters", "user": "users", "context": "contexts"}
_UNSUPPORTED_USER = ("exec", "auth-provider", "username", "password")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """`server` and `others` (further servers of the same cluster) are URLs without a trailing slash. `ssl` None: plain
    HTTP. A token file is read for every request, because the kubelet replaces it. `authority`: the file of the
    certificate authorities of `ssl`; it may be replaced too."""

    server: str
    ssl: ssl.SSLContext | None = None
    token: str = ""
    token_file: Path | None = None
    server_name: str | None = None
    others: tuple[str, ...] = ()
    # The server is the `kubernetes` Service, as a pod's environment names it.
    by_service: bool = False
    authority: Path | None = None

    @property
    def servers(self) -> tuple[str, ...]:
        return (self.server, *self.others)

    def read_authority(self) -> None:
        """Add the authorities that the file has now. Call it when a server's certificate was not accepted. Raises
        OSError and ssl.SSLError."""
        if self.ssl is not None and self.authority is not None:
            self.ssl.load_verify_locations(cafile=str(self.authority))

    def bearer(self) -> str:
        """The current token, or "". Raises OSError when its file cannot be read."""
        return self.token_file.read_text().strip() if self.token_file else self.token


def load(kubeconfig: Path | None, servers: Sequence[str] = (), server_name: str = "") -> ClusterAccess:
    """Access from a kubeconfig's current context, or (None) from the service account of the pod that we run in.

    `servers` (URLs or host:port) replace the server of the kubeconfig, or the `kubernetes` Service: an agent that
    serves ClusterIPs itself does not reach that before its first sync. `server_name`: the name in the servers'
    certificates.

    Raises BadInputError naming file and field, and CannotRunError if there is neither a kubeconfig nor a service
    account.
    """
    urls = tuple(server_url(text) for text in servers)
    access = from_kubeconfig(kubeconfig) if kubeconfig else in_cluster(os.environ, SERVICE_ACCOUNT, urls)
    if urls:
        if access.ssl is None and any(url.startswith("https:") for url in urls):
            raise BadInputError(f"api_servers: {kubeconfig} has no certificate authority: its server is http")
        access = replace(access, server=urls[0], others=urls[1:])
    return replace(access, server_name=server_name) if server_name else access


def in_cluster(environ: Mapping[str, str], folder: Path, servers: Sequence[str] = ()) -> ClusterAccess:
    """Access from the service account files of a pod. Without `servers`, its environment variables name the server (the
    port defaults to 443). Raises CannotRunError if both or a file are missing."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    token, authority = folder / "token", folder / "ca.crt"
    if not host and not servers:
        raise CannotRunError(
            "no kubeconfig is configured and KUBERNETES_SERVICE_HOST is not set: this is not a pod",
            "set `kubeconfig` or `api_servers` in the agent's configuration, or NODENET_API_SERVERS",
        )
    for file in (token, authority):
        if not file.is_file():
            raise CannotRunError(
                f"{file}: missing", "does the pod have a service account (automountServiceAccountToken)?"
            )
    context = ssl.create_default_context(cafile=str(authority))
    server = servers[0] if servers else f"https://{f'[{host}]' if host and ':' in host else host}:{port}"
    return ClusterAccess(
        server,
        context,
        token_file=token,
        others=tuple(servers[1:]),
        by_service=not servers,
        authority=authority,
    )


def server_url(text: str) -> str:
    """A server of `api_servers` as a URL. Raises BadInputError."""
    url = (text if "://" in text else f"https://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and url == f"{parts.scheme}://{parts.netloc}"
        # urlsplit takes any character for a part of the host.
        valid = valid and not re.search(r"[\s,@\\]", url)
        if valid and parts.port is None:
            url += ":443" if parts.scheme == "https" else ":80"
    except ValueError:
        valid = False
    if not valid:
        raise BadInputError(f"api_servers: expected host:port or a URL, got {text!r}")
    return url


def default_kubeconfig() -> Path:
    """The file that kubectl would use: that of KUBECONFIG, else ~/.kube/config. Raises BadInputError if KUBECONFIG
    names several files, which kubectl merges."""
    named = [name for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    if len(named) > 1:
        raise BadInputError(
            f"KUBECONFIG: expected one file, got {os.pathsep.join(named)}",
            "merge them with: kubectl config view --flatten > FILE, and give --kubeconfig FILE",
        )
    return Path(named[0]) if named else Path.home() / ".kube" / "config"


def from_kubeconfig(path: Path, context_name: str = "", *, plugins: bool = False) -> ClusterAccess:
    """A context of a kubeconfig, or (without a name) the current one. `plugins`: run the program that `exec` of the
    user names (credentials.py).

    Raises BadInputError naming file and field, and CannotRunError if that program fails.
    """
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: expected a kubeconfig, got {type(data).__name__}")
    config = _Kubeconfig(path, data)
    context = config.named("context", context_name or config.text(data, "current-context", "", required=True))
    cluster_name = config.text(context, "cluster", "context.", required=True)
    cluster = config.named("cluster", cluster_name)
    user_name = config.text(context, "user", "context.")
    user = config.named("user", user_name) if user_name else {}
    if plugins and user.get("exec"):
        user = credentials.with_plugin(user, path, user_name)
    return _access(config, cluster, user, user_name)


def _access(config: _Kubeconfig, cluster: dict[str, Any], user: dict[str, Any], user_name: str) -> ClusterAccess:
    server = config.text(cluster, "server", "cluster.", required=True).rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise config.error("cluster.server", f"expected http://... or https://..., got {server!r}")
    for key in _UNSUPPORTED_USER:
        if user.get(key):
            raise config.error(f"users[{user_name}].{key}", "not supported: use a client certificate or a token")
    token_file = config.text(user, "tokenFile", "user.")
    return ClusterAccess(
        server,
        config.context(cluster, user) if server.startswith("https://") else None,
        token=config.text(user, "token", "user."),
        token_file=config.path_of(token_file) if token_file else None,
        server_name=config.text(cluster, "tls-server-name", "cluster.") or None,
    )


class _Kubeconfig:
    """One kubeconfig file. Its error messages name the file."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self._path = path
        self._data = data

    def error(self, field: str, message: str) -> BadInputError:
        return BadInputError(f"{self._path}: {field}: {message}")

    def named(self, what: str, name: str) -> dict[str, Any]:
        entries = self._data.get(_SECTIONS[what]) or []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name") == name:
                value = entry.get(what)
                if isinstance(value, dict):
                    return value
        raise self.error(f"{_SECTIONS[what]}", f"no entry has the name {name!r}")

    def text(self, section: dict[str, Any], key: str, where: str, required: bool = False) -> str:
        value = section.get(key)
        if value is None or value == "":
            if required:
                raise self.error(f"{where}{key}", "required")
            return ""
        if not isinstance(value, str):
            raise self.error(f"{where}{key}", f"expected text, got {value!r}")
        return value

    def path_of(self, name: str) -> Path:
        """Relative paths are relative to the kubeconfig's folder, as for kubectl."""
        return self._path.parent / name

    def content(self, section: dict[str, Any], key: str, where: str) -> bytes | None:
        """The decoded base64 of `<key>-data`, or the content of the file that `<key>` names. None if both are
        absent."""
        data = self.text(section, f"{key}-data", where)
        if data:
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise self.error(f"{where}{key}-data", f"not base64: {error}") from error
        name = self.text(section, key, where)
        if not name:
            return None
        try:
            return self.path_of(name).read_bytes()
        except OSError as error:
            raise self.error(f"{where}{key}", f"{self.path_of(name)}: {error.strerror}") from error

    def context(self, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
        authority = self.content(cluster, "certificate-authority", "cluster.")
        try:
            context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise self.error("cluster.certificate-authority", f"not a certificate: {error}") from error
        # The order matters: ssl refuses CERT_NONE while check_hostname is on.
        if cluster.get("insecure-skip-tls-verify") is True:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate = self.content(user, "client-certificate", "user.")
        key = self.content(user, "client-key", "user.")
        if certificate and key:
            self._load_chain(context, certificate, key)
        elif certificate or key:
            raise self.error("user", "client-certificate and client-key belong together: one is missing")
        return context

    def _load_chain(self, context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
        """OpenSSL can read a certificate chain only from a file: write a temporary one that only this user can read."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            try:
                context.load_cert_chain(file.name)
            except ssl.SSLError as error:
                raise self.error("user.client-certificate", f"not a certificate with its key: {error}") from error
