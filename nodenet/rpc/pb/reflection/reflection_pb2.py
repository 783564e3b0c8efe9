"""Generated from reflection/reflection.proto by nodenet/rpc/generate.py: do not edit."""

from nodenet.rpc import schema

schema.build(
    b'\n\x1breflection/reflection.proto\x12\x12grpc.reflection.v1"\xf3\x02\n\x17Server'
    b'ReflectionRequest\x12\x12\n\x04host\x18\x01 \x01(\tR\x04host\x12*\n\x10file_by_filename\x18\x03 '
    b'\x01(\tH\x00R\x0efileByFilename\x126\n\x16file_containing_symbol\x18\x04 \x01(\tH\x00R\x14fil'
    b'eContainingSymbol\x12b\n\x19file_containing_extension\x18\x05 \x01(\x0b2$.grpc.'
    b'reflection.v1.ExtensionRequestH\x00R\x17fileContainingExtension\x12B\n'
    b'\x1dall_extension_numbers_of_type\x18\x06 \x01(\tH\x00R\x19allExtensionNumbersO'
    b'fType\x12%\n\rlist_services\x18\x07 \x01(\tH\x00R\x0clistServicesB\x11\n\x0fmessage_requ'
    b'est"f\n\x10ExtensionRequest\x12\'\n\x0fcontaining_type\x18\x01 \x01(\tR\x0econtaining'
    b'Type\x12)\n\x10extension_number\x18\x02 \x01(\x05R\x0fextensionNumber"\xae\x04\n\x18ServerRe'
    b'flectionResponse\x12\x1d\n\nvalid_host\x18\x01 \x01(\tR\tvalidHost\x12V\n\x10original_'
    b'request\x18\x02 \x01(\x0b2+.grpc.reflection.v1.ServerReflectionRequestR\x0f'
    b'originalRequest\x12f\n\x18file_descriptor_response\x18\x04 \x01(\x0b2*.grpc.ref'
    b'lection.v1.FileDescriptorResponseH\x00R\x16fileDescriptorResponse\x12'
    b'r\n\x1eall_extension_numbers_response\x18\x05 \x01(\x0b2+.grpc.reflection.v1'
    b'.ExtensionNumberResponseH\x00R\x1ballExtensionNumbersResponse\x12_\n\x16l'
    b"ist_services_response\x18\x06 \x01(\x0b2'.grpc.reflection.v1.ListService"
    b'ResponseH\x00R\x14listServicesResponse\x12J\n\x0eerror_response\x18\x07 \x01(\x0b2!.g'
    b'rpc.reflection.v1.ErrorResponseH\x00R\rerrorResponseB\x12\n\x10message_'
    b'response"L\n\x16FileDescriptorResponse\x122\n\x15file_descriptor_proto\x18'
    b'\x01 \x03(\x0cR\x13fileDescriptorProto"j\n\x17ExtensionNumberResponse\x12$\n\x0ebas'
    b'e_type_name\x18\x01 \x01(\tR\x0cbaseTypeName\x12)\n\x10extension_number\x18\x02 \x03(\x05R\x0fe'
    b'xtensionNumber"T\n\x13ListServiceResponse\x12=\n\x07service\x18\x01 \x03(\x0b2#.grp'
    b'c.reflection.v1.ServiceResponseR\x07service"%\n\x0fServiceResponse\x12'
    b'\x12\n\x04name\x18\x01 \x01(\tR\x04name"S\n\rErrorResponse\x12\x1d\n\nerror_code\x18\x01 \x01(\x05R\ter'
    b'rorCode\x12#\n\rerror_message\x18\x02 \x01(\tR\x0cerrorMessage2\x89\x01\n\x10ServerRefle'
    b'ction\x12u\n\x14ServerReflectionInfo\x12+.grpc.reflection.v1.ServerRef'
    b'lectionRequest\x1a,.grpc.reflection.v1.ServerReflectionResponse'
    b'(\x010\x01b\x06proto3'
    ,
    globals(),
)
