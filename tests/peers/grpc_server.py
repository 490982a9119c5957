"""A gRPC service without a .proto file: bytes in, bytes out, on a port it prints.

What a test should see of it is printed as one JSON object a line. A line on its standard input ends the pauses that are
under way; the end of that ends it.
"""

import json
import os
import sys
import threading
from concurrent import futures

import grpc

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def say(**event):
    print(json.dumps(event), flush=True)


def unary(request, context):
    seen = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    say(called="Unary", metadata=seen)
    context.send_initial_metadata((("x-first", "early"),))
    context.set_trailing_metadata((("x-last", "late"), ("x-bytes-bin", b"\x00\xff\x80,")))
    return request


def echo(request, _context):
    return request


def count(request, _context):
    for number in range(int(request)):
        yield b"%d" % number


def join(requests, _context):
    return b"+".join(requests)


def bidi(requests, _context):
    for request in requests:
        yield request.upper()


def same(requests, _context):
    yield from requests


def refuse(request, context):
    context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x0f\x12\x04gone"), ("x-last", "late")))
    context.abort(grpc.StatusCode.DATA_LOSS, request.decode())


def fail_later(_request, context):
    yield b"one"
    context.abort(grpc.StatusCode.ABORTED, "in the middle")


def wait(_request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    say(called="Wait", patience=context.time_remaining())
    say(cancelled=ended.wait(20))
    return b""


def stream_on(_request, context):
    ended = threading.Event()
    context.add_callback(lambda: (say(cancelled=True), ended.set()))
    while not ended.is_set():
        yield b"tick"
        ended.wait(0.02)


resumed = threading.Event()


def pause(_request, _context):
    yield b"before"
    say(pausing=True)
    resumed.wait(20)
    yield b"after"


UNARY = grpc.unary_unary_rpc_method_handler
DOWN = grpc.unary_stream_rpc_method_handler
METHODS = {
    "Unary": UNARY(unary),
    "Echo": UNARY(echo),
    "Count": DOWN(count),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Same": grpc.stream_stream_rpc_method_handler(same),
    "Refuse": UNARY(refuse),
    "FailLater": DOWN(fail_later),
    "Wait": UNARY(wait),
    "StreamOn": DOWN(stream_on),
    "Pause": DOWN(pause),
}


# gRPC's own health service, as its bytes: SERVING.
HEALTH = UNARY(lambda _request, _context: b"\x08\x01")


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/grpc.health.v1.Health/Check":
            return HEALTH
        return METHODS.get(details.method.rsplit("/", 1)[1])


server = grpc.server(futures.ThreadPoolExecutor(64), options=UNLIMITED)
server.add_generic_rpc_handlers((Methods(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
say(port=port)
for _line in sys.stdin:
    resumed.set()
os._exit(0)
