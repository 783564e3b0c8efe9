"""Generated from peer/peer.proto by nodenet/rpc/generate.py: do not edit."""

from nodenet.rpc import schema

schema.build(
    b'\n\x0fpeer/peer.proto\x12\x04peer"\x0f\n\rNotifyRequest"\x91\x01\n\x12ChangeNotificat'
    b'ion\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07address\x18\x02 \x01(\tR\x07address\x120\n\x04type\x18\x03 '
    b'\x01(\x0e2\x1c.peer.ChangeNotificationTypeR\x04type\x12\x1b\n\x03tls\x18\x04 \x01(\x0b2\t.peer.'
    b'TLSR\x03tls"&\n\x03TLS\x12\x1f\n\x0bserver_name\x18\x01 \x01(\tR\nserverName*Y\n\x16ChangeNo'
    b'tificationType\x12\x0b\n\x07UNKNOWN\x10\x00\x12\x0e\n\nPEER_ADDED\x10\x01\x12\x10\n\x0cPEER_DELETED\x10'
    b'\x02\x12\x10\n\x0cPEER_UPDATED\x10\x032A\n\x04Peer\x129\n\x06Notify\x12\x13.peer.NotifyRequest\x1a\x18'
    b'.peer.ChangeNotification0\x01b\x06proto3'
    ,
    globals(),
)
