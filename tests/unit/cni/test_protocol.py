"""The framing between executable and agent."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cni.protocol import ProtocolError, Reply, pack_reply, pack_request, unpack_environment, unpack_reply

_names = st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1, max_size=12)
_values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(st.dictionaries(_names, _values), st.binary(max_size=100))
def test_a_request_holds_what_was_put_in(environment: dict[str, str], stdin: bytes) -> None:
    data = pack_request(environment, stdin)
    assert data[:4] == b"NNC1"
    (length,) = struct.unpack_from("!I", data, 4)
    assert unpack_environment(data[8 : 8 + length]) == environment
    assert struct.unpack_from("!I", data, 8 + length) == (len(stdin),)
    assert data[12 + length :] == stdin


@given(st.integers(0, 255), st.binary(max_size=100), st.integers(0, 200))
def test_half_a_reply_is_never_a_reply(status: int, stdout: bytes, cut: int) -> None:
    data = pack_reply(Reply(status, stdout))
    assert unpack_reply(data) == Reply(status, stdout)
    if cut < len(data):
        with pytest.raises(ProtocolError):
            unpack_reply(data[:cut])
    with pytest.raises(ProtocolError):
        unpack_reply(data + b"x")


@pytest.mark.parametrize("pairs", [b"A=1", b"A\0", b"=1\0", b"\0"])
def test_damaged_environments(pairs: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_environment(pairs)
