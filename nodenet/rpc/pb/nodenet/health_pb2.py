"""Generated from nodenet/health.proto by nodenet/rpc/generate.py: do not edit."""

from nodenet.rpc import schema

schema.build(
    b'\n\x14nodenet/health.proto\x12\x0egrpc.health.v1".\n\x12HealthCheckRequest'
    b'\x12\x18\n\x07service\x18\x01 \x01(\tR\x07service"\xb1\x01\n\x13HealthCheckResponse\x12I\n\x06status'
    b'\x18\x01 \x01(\x0e21.grpc.health.v1.HealthCheckResponse.ServingStatusR\x06s'
    b'tatus"O\n\rServingStatus\x12\x0b\n\x07UNKNOWN\x10\x00\x12\x0b\n\x07SERVING\x10\x01\x12\x0f\n\x0bNOT_SERV'
    b'ING\x10\x02\x12\x13\n\x0fSERVICE_UNKNOWN\x10\x032\xae\x01\n\x06Health\x12P\n\x05Check\x12".grpc.health'
    b'.v1.HealthCheckRequest\x1a#.grpc.health.v1.HealthCheckResponse\x12'
    b'R\n\x05Watch\x12".grpc.health.v1.HealthCheckRequest\x1a#.grpc.health.v'
    b'1.HealthCheckResponse0\x01b\x06proto3'
    ,
    globals(),
)
