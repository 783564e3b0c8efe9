"""The network configuration: what is read, and what each wrong key says."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.cni import alone
from nodenet.cni.conf import NetConf, failure, parse, version_answer
from nodenet.cni.errors import CniError, Code
from nodenet.cni.keys import BRIDGE_KEYS, IPAM_KEYS


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
        ipMasq=True,
        vlan=100,
        vlanTrunk=[{"id": 7}, {"minID": 10, "maxID": 12}],
        preserveDefaultVlan=False,
        macspoofchk=True,
        enabledad=True,
        portIsolation=True,
        dns={"nameservers": ["10.0.0.10"], "search": ["svc"]},
        agentSocket="/x/cni.sock",
        requireAgent=True,
        somethingUnknown={"a": 1},
    )
    assert (found.bridge, found.is_gateway, found.is_default_gateway, found.mtu) == ("nn0", True, True, 1400)
    assert (found.hairpin, found.force_address, found.require_agent, found.ip_masq) == (True, True, True, True)
    assert (found.vlan, found.trunk, found.preserve_default_vlan) == (100, (7, 10, 11, 12), False)
    assert (found.mac_spoof_check, found.enable_dad, found.port_isolation) == (True, True, True)
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
    assert [str(entry.ranges[0].subnet) for entry in found.ipam.sets] == ["fd01::/64", "10.1.0.0/24", "10.2.0.0/24"]
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
        ({"vlan": -7}, Code.BAD_CONFIG, "network net: vlan: expected a VLAN"),
        ({"vlan": 4095}, Code.BAD_CONFIG, "network net: vlan: expected a VLAN"),
        ({"vlanTrunk": [{"minID": 4}]}, Code.BAD_CONFIG, r"network net: vlanTrunk: \[0\]: expected id, or"),
        ({"vlanTrunk": [{"minID": 4, "maxID": 3}]}, Code.BAD_CONFIG, "vlanTrunk: .*minID 4 is above maxID 3"),
        ({"vlanTrunk": [{"id": 0}]}, Code.BAD_CONFIG, "vlanTrunk: .*expected VLANs of 1-4094"),
        ({"ipMasqBackend": "pf"}, Code.BAD_CONFIG, "ipMasqBackend: expected iptables or nftables"),
        (
            {"promiscMode": True, "hairpinMode": True},
            Code.BAD_CONFIG,
            "promiscMode: cannot be combined with hairpinMode",
        ),
        (
            {"disableContainerInterface": True},
            Code.BAD_CONFIG,
            "disableContainerInterface: cannot be combined with ipam",
        ),
        ({"prevResult": []}, Code.BAD_CONFIG, "prevResult: expected an object"),
        ({"prevResult": {"ips": [{"address": "x"}]}}, Code.BAD_CONFIG, r"prevResult\.ips\[0\]: 'x' does not appear"),
        (
            {"prevResult": {"ips": [{"address": "10.1.0.2/24", "interface": 3}]}},
            Code.BAD_CONFIG,
            r"prevResult\.ips\[0\]\.interface: expected the index",
        ),
        ({"prevResult": {"interfaces": [{}]}}, Code.BAD_CONFIG, r"prevResult\.interfaces\[0\]\.name: expected"),
        ({"ipam": []}, Code.BAD_CONFIG, "network net: ipam: expected an object"),
        ({"ipam": {"type": "nodenet", "subnet": "10.1.0.0/24"}}, Code.BAD_CONFIG, "type nodenet uses the node's own"),
        ({"dns": {"search": "x"}}, Code.BAD_CONFIG, "network net: dns: search: expected a list"),
        ({"agentSocket": "x"}, Code.BAD_CONFIG, "network net: agentSocket: expected an absolute path"),
        ({"ipam": {"type": "../dhcp"}}, Code.UNSUPPORTED_FIELD, 'ipam.type: "../dhcp" is neither host-local'),
        ({"ipam": {"type": 7}}, Code.UNSUPPORTED_FIELD, "network net: ipam.type: 7 is neither host-local nor nodenet"),
        (
            {"ipam": {"type": "static"}, "disableContainerInterface": True},
            Code.BAD_CONFIG,
            "disableContainerInterface: cannot be combined with ipam",
        ),
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


def test_a_network_may_have_no_addresses_and_ranges_may_come_from_the_node() -> None:
    assert conf(ipam={}).ipam is None
    assert conf(ipam=None, disableContainerInterface=True).container_interface_down
    assert conf(ipam={"type": "host-local"}).ipam.sets == conf(ipam={"type": "nodenet"}).ipam.sets == ()


def as_verb(verb: str, **keys: Any) -> NetConf:
    data = {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "host-local"}}
    return parse(json.dumps(data | keys).encode(), {}, verb)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_list_is_not_taken_for_a_plugins_configuration(verb: str) -> None:
    """By hand that is soon done, and would be a network without addresses."""
    stdin = b'{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "nodenet"}]}'
    with pytest.raises(CniError, match="got a list") as caught:
        parse(stdin, {}, verb)
    assert caught.value.code == Code.BAD_CONFIG
    assert conf(plugins=[]).bridge == "cni0"


NO_JSON = {
    "a byte order mark": '{"cniVersion": "1.0.0"}'.encode("utf-8-sig"),
    "UTF-16 with one": '{"cniVersion": "1.0.0"}'.encode("utf-16"),
    "UTF-16 without": '{"cniVersion": "1.0.0"}'.encode("utf-16-le"),
    "UTF-32 with one": '{"cniVersion": "1.0.0"}'.encode("utf-32"),
    "UTF-32 without": '{"cniVersion": "1.0.0"}'.encode("utf-32-be"),
    "latin-1": '{"name": "é"}'.encode("latin-1"),
    "a NUL": b'{"ipam":{\0}}',
    "half an escape": b'{"name": "\\ud83d\\u',
    "a number without end": b'{"mtu": ' + b"1" * 5000 + b"}",
    "101 deep": b'{"mtu": ' + b"[" * 100 + b"]" * 100 + b"}",
    "900 deep": b'{"mtu": ' + b"[" * 900 + b"]" * 900 + b"}",
    "100,000 deep": b'{"mtu": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("stdin", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("verb", ["ADD", "DEL", "VERSION", "STATUS"])
def test_what_is_no_json_is_code_6_in_every_verb(stdin: bytes, verb: str) -> None:
    """Also where the message about it is made: the version that it asks for cannot be read."""
    environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}
    reply = alone.run(environment, stdin)
    body = json.loads(reply.stdout)
    assert (reply.status, body["code"], body["cniVersion"]) == (1, 6, "1.1.0")


def test_what_is_just_not_too_deep_is_named_and_cut_short() -> None:
    deep = json.loads("[" * 90 + "]" * 90)
    with pytest.raises(CniError, match="mtu: expected 68-65535") as caught:
        conf(mtu=deep)
    assert len(str(caught.value)) < 300
    with pytest.raises(CniError) as caught:
        conf(mtu="x" * 100_000)
    assert len(str(caught.value)) < 300


def test_gc_has_a_list() -> None:
    key = "cni.dev/valid-attachments"
    assert as_verb("GC", **{key: None}).valid == as_verb("GC", **{key: []}).valid == frozenset()
    assert as_verb("GC", **{key: [{"containerID": "a", "ifname": "eth0"}]}).valid == {("a", "eth0")}
    for value in ({}, "x", [1], [{"containerID": "a"}], [{"containerID": 1, "ifname": "b"}], 7):
        with pytest.raises(CniError, match=f"{key}: expected") as caught:
            as_verb("GC", **{key: value})
        assert caught.value.code == Code.BAD_CONFIG
    # Without a list, as libcni calls it for a runtime that gives none, nothing is known of what is valid.
    assert as_verb("GC").valid is None
    assert as_verb("GC", **{"cni.dev/attachments": None}).valid == frozenset()


@pytest.mark.parametrize(("verb", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_a_verb_newer_than_the_version_is_code_1(verb: str, since: str) -> None:
    with pytest.raises(CniError, match=f"{verb} needs {since} or newer") as caught:
        as_verb(verb, cniVersion="0.3.1")
    assert caught.value.code == Code.INCOMPATIBLE_VERSION


def test_check_needs_prev_result_and_del_does_not_mind_a_bad_one() -> None:
    with pytest.raises(CniError, match="prevResult: required for CHECK"):
        as_verb("CHECK")
    assert as_verb("DEL", prevResult=7).prev is None
    result = {
        "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "02:00:00:00:00:0A", "sandbox": "/n", "mtu": 1400}],
        "ips": [{"address": "10.1.0.2/24", "interface": 1, "gateway": "10.1.0.1"}, {"address": "fd01::2/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
    }
    prev = as_verb("CHECK", prevResult=result).prev
    assert prev is not None
    assert (prev.inside("/n", "eth0"), prev.inside("", "br0"), prev.inside("/n", "eth1")) == (1, 0, -1)
    assert (prev.interfaces[1].mac, prev.interfaces[1].mtu) == ("02:00:00:00:00:0a", 1400)
    assert [entry.interface for entry in prev.addresses] == [1, -1]


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


@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC", "CHECK", "STATUS"])
def test_another_ipam_plugin_reads_its_keys_itself(verb: str) -> None:
    ipam = {"type": "whereabouts", "dataDir": 5, "ranges": {"theirs": True}, "routes": 7}
    found = as_verb(verb, ipam=ipam, prevResult={}, **{"cni.dev/valid-attachments": []})
    assert (found.delegate, found.ipam) == ("whereabouts", None)


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_removal_reads_only_what_it_needs(verb: str) -> None:
    ipam = {"type": "host-local", "dataDir": "/d", "ranges": 7}
    keys = {"mtu": "x", "vlan": -1, "ipam": ipam, "args": 3, "prevResult": 4, "agentSocket": "/x/cni.sock"}
    found = as_verb(verb, **keys, **{"cni.dev/valid-attachments": []})
    assert found.ipam is not None
    assert (found.ipam.data_dir, found.run_dir, found.prev) == (Path("/d"), Path("/x"), None)
    for wrong in ({"agentSocket": 3}, {"ipam": {"dataDir": "d"}}):
        with pytest.raises(CniError, match="expected an absolute path"):
            as_verb(verb, **wrong, **{"cni.dev/valid-attachments": []})
