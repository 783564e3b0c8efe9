"""Makes message classes, server handlers and client calls from the generated descriptors.

The descriptors are in a separate pool, not in protobuf's global one: another library in the same process may use the
names `flow`, `peer` and `relay`, and the global pool rejects a second definition. Only protobuf's public API is used at
run time, so the generated modules work with other versions of protobuf than the one that generated them.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import grpc
from google.protobuf import (
    any_pb2,
    descriptor_pool,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.internal import enum_type_wrapper

POOL = descriptor_pool.DescriptorPool()
for _module in (any_pb2, field_mask_pb2, timestamp_pb2, wrappers_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)


def build(serialized: bytes, namespace: MutableMapping[str, Any]) -> None:
    """Add one file to the pool and its messages, enums and services to a generated module's namespace.

    Files that it imports must be built first; the generated module does so by importing their modules.
    """
    added = POOL.AddSerializedFile(serialized)
    namespace["DESCRIPTOR"] = added
    for name, message in added.message_types_by_name.items():
        namespace[name] = message_factory.GetMessageClass(message)
    for name, enum in added.enum_types_by_name.items():
        namespace[name] = enum_type_wrapper.EnumTypeWrapper(enum)
        namespace.update({value.name: value.number for value in enum.values})


def handler(service: ServiceDescriptor, servicer: object, full_name: str = "") -> grpc.GenericRpcHandler:
    """Make the handler of a service. `servicer` has a method for each call; `full_name` replaces the name of the
    service.

    Raises TypeError if a method is missing, so that no call is forgotten.
    """
    missing = [method.name for method in service.methods if not hasattr(servicer, method.name)]
    if missing:
        raise TypeError(f"{type(servicer).__name__} lacks {', '.join(missing)} of {service.full_name}")
    methods = {method.name: _method_handler(method, getattr(servicer, method.name)) for method in service.methods}
    return grpc.method_handlers_generic_handler(full_name or service.full_name, methods)


def call(channel: Any, service: ServiceDescriptor, name: str, full_name: str = "") -> Any:
    """The client stub of one call on a channel of grpc or grpc.aio."""
    method = service.methods_by_name[name]
    ways = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    return ways[method.client_streaming, method.server_streaming](
        f"/{full_name or service.full_name}/{name}",
        request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )


# By whether the client and the server stream.
_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _method_handler(method: MethodDescriptor, behaviour: Any) -> grpc.RpcMethodHandler:
    return _HANDLERS[method.client_streaming, method.server_streaming](
        behaviour,
        request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )
