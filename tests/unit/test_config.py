"""The agent's configuration: every wrong key is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.agent.settings import read_config
from nodenet.config import Config, parse
from nodenet.errors import BadInputError


def test_defaults_and_conversion() -> None:
    config = parse({"node_name": "n1", "kubeconfig": "/k", "resync_seconds": 5, "cgroup": None}, "test")
    assert config == Config("n1", kubeconfig=Path("/k"), resync_seconds=5.0)
    assert config.agent_socket == Path("/run/nodenet/agent.sock")


def test_every_error_is_told_at_once() -> None:
    bad = {"nodename": "x", "flow_buffer": 0, "bpffs": 3, "metrics_address": "nowhere", "redirect_peer": "yes"}
    with pytest.raises(BadInputError) as told:
        parse(bad, "agent.yaml")
    for part in (
        "agent.yaml: ",
        "nodename: unknown key",
        "node_name: required",
        "flow_buffer: expected more than 0, got 0",
        "bpffs: expected a path, got 3",
        "metrics_address: expected host:port, got 'nowhere'",
        "redirect_peer: expected bool, got 'yes'",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize("own", ["proxy_health_address", "proxy_metrics_address"])
@pytest.mark.parametrize("key", ["health_address", "metrics_address"])
def test_kube_proxys_servers_have_addresses_of_their_own(own: str, key: str) -> None:
    for address, given in (("127.0.0.1:1", {key: "127.0.0.1:1"}), (str(getattr(Config(""), key)), {})):
        with pytest.raises(BadInputError, match=f"{own}: expected another address than {key}, both are"):
            parse({"node_name": "n", own: address} | given, "test")
    parse({"node_name": "n", own: "", key: ""}, "test")
    # One listener serves both of these.
    parse({"node_name": "n", "health_address": "127.0.0.1:1", "metrics_address": "127.0.0.1:1"}, "test")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "not YAML"), ("[1]", "expected a mapping of keys, got list"), (None, "No such file")],
)
def test_bad_files(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "agent.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInputError, match=sentence):
        read_config(path)


def test_the_environment_of_a_pod_supplies_what_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("")
    environ = {"NODE_NAME": "n1", "NODENET_API_SERVERS": "10.0.0.1:6443, 10.0.0.2:6443"}
    config = read_config(path, environ)
    assert (config.node_name, config.api_servers) == ("n1", ("10.0.0.1:6443", "10.0.0.2:6443"))
    assert read_config(path, environ | {"NODENET_NODE_NAME": "n2"}).node_name == "n2"
    assert read_config(path, environ | {"NODENET_METRICS_ADDRESS": ":9"}).metrics_address == ":9"
    path.write_text("node_name: n3\napi_servers: [x]")
    config = read_config(path, environ)
    assert (config.node_name, config.api_servers) == ("n3", ("x",))
    path.write_text("api_servers: x")
    with pytest.raises(BadInputError, match=r"api_servers: expected a list of texts, got 'x'; |NODENET_NODE_NAME"):
        read_config(path, {})
