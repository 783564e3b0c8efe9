"""Generated from nodenet/agent.proto by nodenet/rpc/generate.py: do not edit."""

import nodenet.rpc.pb.flow.flow_pb2
from nodenet.rpc import schema

schema.build(
    b'\n\x13nodenet/agent.proto\x12\nnodenet.v1\x1a\x0fflow/flow.proto"\x0f\n\rStatus'
    b'Request"$\n\x0eStatusResponse\x12\x12\n\x04json\x18\x01 \x01(\x0cR\x04json"e\n\x0bListRequest'
    b'\x12\x1a\n\x08resource\x18\x01 \x01(\tR\x08resource\x12\x14\n\x05limit\x18\x02 \x01(\x04R\x05limit\x12\x12\n\x04name\x18\x03'
    b' \x01(\tR\x04name\x12\x10\n\x03key\x18\x04 \x03(\tR\x03key""\n\x0cListResponse\x12\x12\n\x04rows\x18\x01 \x03(\x0cR\x04'
    b'rows"d\n\x0eExplainRequest\x12\x12\n\x04from\x18\x01 \x01(\tR\x04from\x12\x0e\n\x02to\x18\x02 \x01(\tR\x02to\x12\x12'
    b'\n\x04port\x18\x03 \x01(\rR\x04port\x12\x1a\n\x08protocol\x18\x04 \x01(\tR\x08protocol"%\n\x0fExplainRes'
    b'ponse\x12\x12\n\x04json\x18\x01 \x01(\x0cR\x04json"@\n\x0eMonitorRequest\x12\x16\n\x06number\x18\x01 \x01(\x04R'
    b'\x06number\x12\x16\n\x06follow\x18\x02 \x01(\x08R\x06follow"s\n\x0fMonitorResponse\x12\x18\n\x07record'
    b's\x18\x01 \x03(\x0cR\x07records\x12#\n\x04lost\x18\x02 \x01(\x0b2\x0f.flow.LostEventR\x04lost\x12!\n\x0cclo'
    b'ck_offset\x18\x03 \x01(\x03R\x0bclockOffset2\x8f\x02\n\x05Agent\x12?\n\x06Status\x12\x19.nodenet.v'
    b'1.StatusRequest\x1a\x1a.nodenet.v1.StatusResponse\x12;\n\x04List\x12\x17.nodene'
    b't.v1.ListRequest\x1a\x18.nodenet.v1.ListResponse0\x01\x12B\n\x07Explain\x12\x1a.no'
    b'denet.v1.ExplainRequest\x1a\x1b.nodenet.v1.ExplainResponse\x12D\n\x07Moni'
    b'tor\x12\x1a.nodenet.v1.MonitorRequest\x1a\x1b.nodenet.v1.MonitorResponse'
    b'0\x01b\x06proto3'
    ,
    globals(),
)
