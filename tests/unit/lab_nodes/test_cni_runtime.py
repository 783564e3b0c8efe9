from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet.lab import cni_runtime, files, layout
from nodenet.lab.cni_runtime import Attachment, CniError


def test_a_plugin_gets_its_part_of_the_list() -> None:
    conflist = {"cniVersion": "1.0.0", "name": "net", "plugins": []}
    plugin = {"type": "x", "capabilities": {"portMappings": True}, "mtu": 1400}
    config = cni_runtime.plugin_config(conflist, plugin, {"ips": []})
    assert config == {
        "type": "x",
        "mtu": 1400,
        "name": "net",
        "cniVersion": "1.0.0",
        "runtimeConfig": {},
        "prevResult": {"ips": []},
    }
    assert "prevResult" not in cni_runtime.plugin_config(conflist, plugin, None)


def test_the_environment_is_that_of_the_specification() -> None:
    env = cni_runtime.environment(
        "ADD", Attachment("id", Path("/run/netns/x"), {"A": "1", "B": "2"}), Path("/lab/cni-bin")
    )
    assert env["CNI_COMMAND"] == "ADD"
    assert env["CNI_ARGS"] == "A=1;B=2"
    assert env["CNI_NETNS"] == "/run/netns/x"
    assert env["CNI_IFNAME"] == "eth0"
    assert env["CNI_PATH"] == "/lab/cni-bin"


def test_an_error_result_keeps_code_message_and_details() -> None:
    answer = json.dumps({"cniVersion": "1.0.0", "code": 11, "msg": "later", "details": "busy"}).encode()
    with pytest.raises(CniError, match=r"ADD by plugin x failed \(code 11\): later: busy") as caught:
        cni_runtime.read_result("x", "ADD", 1, answer, b"")
    assert caught.value.code == 11


@pytest.mark.parametrize("out", [b"", b"not json", b"[]"])
def test_what_is_no_result_is_an_error(out: bytes) -> None:
    with pytest.raises(CniError):
        cni_runtime.read_result("x", "ADD", 1, out, b"Traceback\nboom")


def test_addresses_come_in_the_plugins_order() -> None:
    result = {"ips": [{"address": "10.244.1.2/24"}, {"address": "fd00::2/64"}]}
    assert cni_runtime.addresses(result) == (ip_address("10.244.1.2"), ip_address("fd00::2"))


def test_the_conflist_has_a_range_for_each_family() -> None:
    lab = layout.plan("x", 1, layout.IPFamily.DUAL)
    conflist = files.conflist(lab, lab.nodes[0])
    assert conflist["plugins"][0]["ipam"]["ranges"] == [
        [{"subnet": "10.244.1.0/24"}],
        [{"subnet": "fd00:10:244:1::/64"}],
    ]
