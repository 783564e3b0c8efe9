"""Reading the tracepoint's record from kernels that lay it out differently."""

from __future__ import annotations

import pytest

from nodenet.errors import CannotRunError
from nodenet.trace.drops import parse_format, protocol_name

NEW = """name: kfree_skb
	field:void * skbaddr;	offset:8;	size:8;	signed:0;
	field:void * location;	offset:16;	size:8;	signed:0;
	field:void * rx_sk;	offset:24;	size:8;	signed:0;
	field:unsigned short protocol;	offset:32;	size:2;	signed:0;
	field:enum skb_drop_reason reason;	offset:36;	size:4;	signed:0;

print fmt: "...", __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, { 0x3, "NO_SOCKET" })
"""
OLD = """	field:void * skbaddr;	offset:8;	size:8;	signed:0;
	field:void * location;	offset:16;	size:8;	signed:0;
	field:unsigned short protocol;	offset:24;	size:2;	signed:0;
"""


def test_a_kernel_with_reasons():
    found = parse_format(NEW)
    assert (found.offsets["location"], found.offsets["protocol"], found.offsets["reason"]) == (16, 32, 36)
    assert found.reasons == {2: "NOT_SPECIFIED", 3: "NO_SOCKET"}


def test_a_kernel_without():
    found = parse_format(OLD)
    assert "reason" not in found.offsets
    assert found.reasons == {}


def test_a_kernel_that_is_not_understood():
    with pytest.raises(CannotRunError, match="has no field 'location'"):
        parse_format("field:int other; offset:8; size:4;")


def test_protocols():
    assert [protocol_name(n) for n in (0x800, 0x86DD, 0x88CC)] == ["IPv4", "IPv6", "0x88cc"]
