"""A client of furt's Session in Python, over grpcio, with no generated code: the messages come from reflection.

usage: session.py ADDRESS REGISTRATION     the registration as JSON
Prints each answer as a line of JSON. A line on standard input is a message of the session, as JSON; its end closes it.
"""

import json
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, registration = sys.argv[1], json.loads(sys.argv[2])
with grpc.insecure_channel(address) as channel:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    session = pool.FindServiceByName("furt.v1.RegistryService").FindMethodByName("Session")
    Request, Response = (message_factory.GetMessageClass(of) for of in (session.input_type, session.output_type))

    def messages():
        yield json_format.ParseDict({"register": registration}, Request())
        for line in sys.stdin:
            yield json_format.Parse(line, Request())

    call = channel.stream_stream(
        "/furt.v1.RegistryService/Session", request_serializer=Request.SerializeToString, response_deserializer=Response.FromString
    )
    try:
        for answer in call(messages()):
            shown = json_format.MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            print(json.dumps(shown), flush=True)
    except grpc.RpcError as error:
        print(json.dumps({"status": error.code().name, "message": error.details()}), flush=True)
        sys.exit(1)
