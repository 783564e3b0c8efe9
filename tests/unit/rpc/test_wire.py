"""Our protocol files say, number by number, what Hubble's clients expect on the wire."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from nodenet.rpc import generate, schema
from nodenet.rpc.pb.flow import flow_pb2
from nodenet.rpc.pb.nodenet import agent_pb2, health_pb2
from nodenet.rpc.pb.observer import observer_pb2
from nodenet.rpc.pb.peer import peer_pb2
from nodenet.rpc.pb.relay import relay_pb2

TABLE = [line.split() for line in (Path(__file__).parent / "hubble_api.txt").read_text().splitlines()[1:]]
PRIMITIVES = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "string", "bytes", "double", "int32", "int64", "uint32", "uint64")
}
MODULES = (agent_pb2, health_pb2, flow_pb2, observer_pb2, peer_pb2, relay_pb2)


def rows(kind):
    return [pytest.param(row[1:], id=row[1]) for row in TABLE if row[0] == kind]


def type_name(field):
    if field.message_type is not None:
        return field.message_type.full_name
    return field.enum_type.full_name if field.enum_type is not None else PRIMITIVES[field.type]


def is_same_type(ours, theirs, package):
    return ours == theirs or ours == f"{package}.{theirs}" or ours.endswith(f".{theirs}")


@pytest.mark.parametrize("row", rows("field"))
def test_field(row):
    path, number, *rest = row
    message, _, name = path.rpartition(".")
    field = schema.POOL.FindMessageTypeByName(message).fields_by_name[name]
    wanted_type = rest[1] if rest[0] == "repeated" else rest[0]
    assert field.number == int(number)
    assert (rest[0] == "repeated") is bool(field.is_repeated)
    assert is_same_type(type_name(field), wanted_type, path.split(".")[0])
    oneof = next((word.removeprefix("oneof=") for word in rest if word.startswith("oneof=")), None)
    assert oneof == (field.containing_oneof.name if field.containing_oneof else None)


@pytest.mark.parametrize("row", rows("value"))
def test_enum_value(row):
    path, number = row
    enum, _, name = path.rpartition(".")
    assert schema.POOL.FindEnumTypeByName(enum).values_by_name[name].number == int(number)


@pytest.mark.parametrize("row", rows("rpc"))
def test_call(row):
    path, argument, *result = row
    service, _, name = path.partition("/")
    method = schema.POOL.FindServiceByName(service).methods_by_name[name]
    assert method.input_type.full_name == argument
    assert method.output_type.full_name == result[-1]
    assert method.server_streaming is (result[0] == "stream")


def test_nothing_but_the_table_and_the_printed_summary():
    known = {row[1] for row in TABLE}
    extra = set()
    for module in (flow_pb2, observer_pb2, peer_pb2, relay_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            extra |= {f"{message.full_name}.{field.name}" for field in message.fields} - known
    assert extra == {"flow.Flow.Summary"}


def test_a_request_encoded_by_hand():
    """What `hubble observe --last 20 --verdict DROPPED --from-pod default/a --to-port 80` sends."""
    name = b"default/a"
    flow_filter = bytes([2 << 3 | 2, len(name)]) + name + bytes([5 << 3 | 2, 1, 2]) + bytes([14 << 3 | 2, 2]) + b"80"
    raw = bytes([1 << 3, 20, 6 << 3 | 2, len(flow_filter)]) + flow_filter
    request = observer_pb2.GetFlowsRequest.FromString(raw)
    assert request.number == 20
    (one,) = request.whitelist
    assert (list(one.source_pod), list(one.verdict), list(one.destination_port)) == (["default/a"], [2], ["80"])
    assert request.SerializeToString() == raw


def test_a_flow_encoded_by_hand():
    flow = flow_pb2.Flow(verdict=flow_pb2.DROPPED, node_name="n", drop_reason_desc=flow_pb2.POLICY_DENIED)
    flow.is_reply.value = False
    raw = bytes([2 << 3, 2, 11 << 3 | 2, 1]) + b"n" + bytes([0xC8, 0x01, 0x85, 0x01, 0xD2, 0x01, 0])
    assert flow.SerializeToString(deterministic=True) == raw


def test_generating_again_gives_the_same_descriptors(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is for development")
    assert generate.main(tmp_path) == 0
    generated = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    committed = {str(path.relative_to(generate.PB)) for path in generate.PB.rglob("*.py")}
    assert generated == committed
    for module in MODULES:
        text = (tmp_path / Path(module.__file__).relative_to(generate.PB)).read_text()
        literal = text.partition("schema.build(")[2].rpartition("globals(),")[0].strip().rstrip(",")
        again = ast.literal_eval(f"({literal})")
        assert again == module.DESCRIPTOR.serialized_pb, f"run make proto: {module.__name__} is older than its proto"


def test_another_librarys_flow_package_may_live_in_the_same_process():
    """Nothing of ours is in protobuf's global pool."""
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("flow.Flow")
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("flow/flow.proto")


def test_a_servicer_that_lacks_a_call_is_refused():
    with pytest.raises(TypeError, match=r"lacks GetFlows, GetAgentEvents, .* of observer\.Observer"):
        schema.handler(observer_pb2.DESCRIPTOR.services_by_name["Observer"], object())
