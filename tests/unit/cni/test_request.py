"""The environment of a call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cni.errors import CniError, Code
from nodenet.cni.request import parse
from nodenet.model import ObjectRef

ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}


def test_the_pod_comes_from_cni_args() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=c1"
    request = parse(ADD | {"CNI_ARGS": args}, b"{}")
    assert (request.pod, request.pod_uid, request.ifname) == (ObjectRef("shop", "web-0"), "u1", "eth0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CNI_COMMAND": "PUT"}, "CNI_COMMAND: expected one of ADD, DEL"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID: required for ADD"),
        ({"CNI_NETNS": ""}, "CNI_NETNS: required for ADD"),
        ({"CNI_CONTAINERID": "../x"}, "CNI_CONTAINERID: expected"),
        ({"CNI_CONTAINERID": "a" * 201}, "CNI_CONTAINERID: expected at most 200"),
        ({"CNI_CONTAINERID": "a\n"}, "CNI_CONTAINERID: expected"),
        ({"CNI_IFNAME": "a" * 16}, "CNI_IFNAME: expected 1-15"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_ARGS": "x"}, "CNI_ARGS: expected KEY=VALUE"),
    ],
)
def test_a_wrong_variable_is_code_4_and_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(CniError, match=message) as caught:
        parse(ADD | change, b"{}")
    assert caught.value.code == Code.BAD_ENVIRONMENT


def test_del_needs_no_namespace() -> None:
    assert parse({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}, b"").netns == ""


@given(st.dictionaries(st.sampled_from([*ADD, "CNI_ARGS"]), st.text(max_size=20)))
def test_any_environment_is_a_request_or_code_4(change: dict[str, str]) -> None:
    try:
        parse(ADD | change, b"")
    except CniError as error:
        code = error.code
    else:
        return
    assert code == Code.BAD_ENVIRONMENT
