"""Generated from relay/relay.proto by nodenet/rpc/generate.py: do not edit."""

from nodenet.rpc import schema

schema.build(
    b'\n\x11relay/relay.proto\x12\x05relay"\x7f\n\x0fNodeStatusEvent\x123\n\x0cstate_chang'
    b'e\x18\x01 \x01(\x0e2\x10.relay.NodeStateR\x0bstateChange\x12\x1d\n\nnode_names\x18\x02 \x03(\tR\t'
    b'nodeNames\x12\x18\n\x07message\x18\x03 \x01(\tR\x07message*l\n\tNodeState\x12\x16\n\x12UNKNOWN_'
    b'NODE_STATE\x10\x00\x12\x12\n\x0eNODE_CONNECTED\x10\x01\x12\x14\n\x10NODE_UNAVAILABLE\x10\x02\x12\r\n\tNO'
    b'DE_GONE\x10\x03\x12\x0e\n\nNODE_ERROR\x10\x04b\x06proto3'
    ,
    globals(),
)
