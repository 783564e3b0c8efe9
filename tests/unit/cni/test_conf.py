"""The network configuration: what is read, and what each wrong key says."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.cni.conf import BRIDGE_KEYS, IPAM_KEYS, NetConf, failure, parse, version_answer
from nodenet.cni.errors import CniError, Code


def conf(cni_args: dict[str, str] | None = None, **keys: Any) -> NetConf:
    data = {"cniVersion": "1.0.0", "name": "net", "type": "nodenet", "ipam": {"subnet": "10.1.0.0/24"}}
    return parse(json.dumps(data | keys).encode(), cni_args or {})


def test_defaults_are_the_references() -> None:
    found = conf()
    assert (found.bridge, found.is_gateway, found.mtu, found.hairpin) == ("cni0", False, 0, False)
    assert found.ipam.data_dir == Path("/var/lib/cni/networks")
    (entry,) = found.ipam.sets[0].ranges
    assert (str(entry), str(entry.gateway)) == ("10.1.0.1-10.1.0.254", "10.1.0.1")
    assert found.run_dir == Path("/run/nodenet")


def test_every_key_is_read() -> None:
    found = conf(
        ipam={
            "type": "host-local",
            "dataDir": "/d",
            "resolvConf": "/r",
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9", "mtu": 1300, "priority": 5}],
            "ranges": [
                [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.254"}],
                [{"subnet": "fd01::/64"}],
            ],
        },
        cni_args={"IP": "10.1.0.10", "MAC": "02:00:00:00:00:01"},
        bridge="nn0",
        isDefaultGateway=True,
        forceAddress=True,
        mtu=1400,
        hairpinMode=True,
        promiscMode=True,
        dns={"nameservers": ["10.0.0.10"], "search": ["svc"]},
        agentSocket="/x/cni.sock",
        requireAgent=True,
        somethingUnknown={"a": 1},
    )
    assert (found.bridge, found.is_gateway, found.is_default_gateway, found.mtu) == ("nn0", True, True, 1400)
    assert (found.hairpin, found.promiscuous, found.force_address, found.require_agent) == (True, True, True, True)
    assert found.dns == {"nameservers": ["10.0.0.10"], "search": ["svc"]}
    assert found.mac == "02:00:00:00:00:01"
    assert found.run_dir == Path("/x")
    first, second = found.ipam.sets
    assert (str(first), str(first.ranges[0].gateway)) == ("10.1.0.9-10.1.0.20", "10.1.0.254")
    assert str(second.ranges[0].end) == "fd01::ffff:ffff:ffff:ffff"
    assert found.ipam.requested == (ip_address("10.1.0.10"),)
    assert found.ipam.routes[1].network == ip_network("10.9.0.0/16")
    assert (found.ipam.routes[1].mtu, found.ipam.routes[1].priority) == (1300, 5)


def test_ranges_come_from_three_places_in_order() -> None:
    found = conf(
        ipam={"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
        runtimeConfig={"ipRanges": [[{"subnet": "fd01::/64"}]], "ips": ["10.2.0.7/24"], "mac": "02:00:00:00:00:03"},
        cni_args={"MAC": "02:00:00:00:00:01"},
    )
    assert [str(entry.ranges[0].subnet) for entry in found.ipam.sets] == ["10.1.0.0/24", "10.2.0.0/24", "fd01::/64"]
    assert found.ipam.requested == (ip_address("10.2.0.7"),)
    assert found.mac == "02:00:00:00:00:03"


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"cniVersion": "0.2.0"}, Code.INCOMPATIBLE_VERSION, "cniVersion: expected one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ({"cniVersion": 1}, Code.DECODE_FAILURE, "cniVersion: expected text"),
        ({"name": "a/b"}, Code.BAD_CONFIG, 'name: .*got "a/b"'),
        ({"bridge": "a/b"}, Code.BAD_CONFIG, 'network net: bridge: expected an interface name.*got "a/b"'),
        ({"mtu": "1500"}, Code.BAD_CONFIG, 'network net: mtu: expected 68-65535.*got "1500"'),
        ({"mtu": True}, Code.BAD_CONFIG, "network net: mtu: expected"),
        ({"isGateway": "yes"}, Code.BAD_CONFIG, "network net: isGateway: expected true or false"),
        ({"ipMasq": True}, Code.UNSUPPORTED_FIELD, "network net: ipMasq: true is not supported yet"),
        ({"vlan": 7}, Code.UNSUPPORTED_FIELD, "network net: vlan: 7 is not supported yet"),
        ({"vlan": -7}, Code.BAD_CONFIG, "network net: vlan: expected a number"),
        ({"dns": {"search": "x"}}, Code.BAD_CONFIG, "network net: dns: search: expected a list"),
        ({"agentSocket": "x"}, Code.BAD_CONFIG, "network net: agentSocket: expected an absolute path"),
        ({"ipam": None}, Code.BAD_CONFIG, "network net: ipam: required"),
        ({"ipam": {"type": "dhcp"}}, Code.UNSUPPORTED_FIELD, "network net: ipam.type: 'dhcp'"),
        ({"ipam": {"type": "host-local"}}, Code.BAD_CONFIG, r"network net: ipam\.ranges: required"),
        ({"ipam": {"ranges": [{"subnet": "10.1.0.0/24"}]}}, Code.BAD_CONFIG, r"ipam\.ranges\[0\]: expected a list"),
        (
            {"ipam": {"ranges": [[{"subnet": "x"}]]}},
            Code.BAD_CONFIG,
            r"ipam\.ranges\[0\]\[0\]\.subnet: expected a network",
        ),
        ({"ipam": {"subnet": "10.1.0.1/24"}}, Code.BAD_CONFIG, r"ipam\.subnet: 10\.1\.0\.1/24 has host bits set"),
        ({"ipam": {"subnet": "10.1.0.0/31"}}, Code.BAD_CONFIG, r"ipam\.subnet: 10\.1\.0\.0/31 is too small"),
        (
            {"ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}},
            Code.BAD_CONFIG,
            "rangeStart: 10.2.0.1 is not in",
        ),
        (
            {"ipam": {"subnet": "10.1.0.0/24", "gateway": "fd01::1"}},
            Code.BAD_CONFIG,
            "gateway: fd01::1 is not of the family",
        ),
        (
            {"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.128/25"}]]}},
            Code.BAD_CONFIG,
            "ipam.ranges: 10.1.0.129-10.1.0.254 and 10.1.0.1-10.1.0.254 overlap",
        ),
        (
            {"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd01::/64"}]]}},
            Code.BAD_CONFIG,
            "IPv4 and IPv6 in one set",
        ),
        (
            {"ipam": {"subnet": "10.1.0.0/24", "routes": [{"gw": "1.1.1.1"}]}},
            Code.BAD_CONFIG,
            r"ipam\.routes: \[0\]\.dst",
        ),
        ({"args": {"cni": {"ips": ["x"]}}}, Code.BAD_CONFIG, "requested address: 'x'"),
        ({"args": {"cni": {"mac": "01:00:00:00:00:01"}}}, Code.BAD_CONFIG, "mac: expected a unicast address"),
        ({"runtimeConfig": []}, Code.BAD_CONFIG, "runtimeConfig: expected an object"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, Any], code: Code, message: str) -> None:
    with pytest.raises(CniError, match=message) as caught:
        conf(**keys)
    assert caught.value.code == code


def test_a_key_not_carried_out_may_say_its_default() -> None:
    assert conf(ipMasq=False, vlan=0, macspoofchk=False).name == "net"


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"\xff", b"3", b"[" * 100000])
def test_no_json_object_is_code_6(stdin: bytes) -> None:
    with pytest.raises(CniError) as caught:
        parse(stdin, {})
    assert caught.value.code == Code.DECODE_FAILURE
    assert json.loads(failure(stdin, caught.value).stdout)["code"] == 6


_word = st.text("abz019./:\0é", max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | _word | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_word, inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from([*BRIDGE_KEYS, "name", "ipam", "args", "runtimeConfig", "cniVersion"])
_ipam_keys = st.sampled_from([*IPAM_KEYS, "type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges"])


@settings(deadline=None)
@given(st.dictionaries(_keys, _json, max_size=3), st.dictionaries(_ipam_keys, _json, max_size=3))
def test_any_configuration_is_read_or_refused(keys: dict[str, Any], ipam: dict[str, Any]) -> None:
    base = {"cniVersion": "1.1.0", "name": "net", "ipam": {"subnet": "10.1.0.0/24"} | ipam}
    stdin = json.dumps(base | keys).encode()
    try:
        parse(stdin, {})
    except CniError as error:
        reply = failure(stdin, error)
    else:
        return
    assert set(json.loads(reply.stdout)) <= {"cniVersion", "code", "msg", "details"}


def test_version_and_errors_speak_the_version_asked_for() -> None:
    assert json.loads(version_answer(b'{"cniVersion":"0.4.0"}')) == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }
    assert json.loads(version_answer(b""))["cniVersion"] == "1.1.0"
    reply = failure(b'{"cniVersion":"0.3.1"}', CniError(Code.TRY_AGAIN, "later", "why"))
    assert reply.status == 1
    assert json.loads(reply.stdout) == {"cniVersion": "0.3.1", "code": 11, "msg": "later", "details": "why"}
