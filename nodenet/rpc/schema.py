"""From generated descriptors to message classes, server handlers and client calls.

The descriptors live in a pool of their own, not in protobuf's global one: `flow`, `peer` and `relay` are names that
another library in the same process may well use, and the global pool refuses a second meaning. Only protobuf's
public interface is used at run time, so the generated modules do not depend on the version that generated them.
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

    Files that it imports must have been built before: the generated module imports their modules.
    """
    added = POOL.AddSerializedFile(serialized)
    namespace["DESCRIPTOR"] = added
    for name, message in added.message_types_by_name.items():
        namespace[name] = message_factory.GetMessageClass(message)
    for name, enum in added.enum_types_by_name.items():
        namespace[name] = enum_type_wrapper.EnumTypeWrapper(enum)
        namespace.update({value.name: value.number for value in enum.values})


def handler(service: ServiceDescriptor, servicer: object, full_name: str = "") -> grpc.GenericRpcHandler:
    """Serve a service by an object that has a method for each of its calls, under `full_name` where one is given.

    Raises TypeError when a method is missing: a call that is not served should be a decision, not an oversight.
    """
    missing = [method.name for method in service.methods if not hasattr(servicer, method.name)]
    if missing:
        raise TypeError(f"{type(servicer).__name__} lacks {', '.join(missing)} of {service.full_name}")
    methods = {method.name: _method_handler(method, getattr(servicer, method.name)) for method in service.methods}
    return grpc.method_handlers_generic_handler(full_name or service.full_name, methods)


def call(channel: Any, service: ServiceDescriptor, name: str, full_name: str = "") -> Any:
    """The client side of one call on a channel (grpc's or grpc.aio's)."""
    method = service.methods_by_name[name]
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    return make(
        f"/{full_name or service.full_name}/{name}",
        request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )


def _method_handler(method: MethodDescriptor, behaviour: Any) -> grpc.RpcMethodHandler:
    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        behaviour,
        request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )
