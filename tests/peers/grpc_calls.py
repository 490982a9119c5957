"""gRPC through furt, by grpcio on both sides: all four kinds of call, metadata, errors, deadlines, furt's refusals.

grpc_calls.py serve            a server on a free port, which it prints
grpc_calls.py call HOST:PORT   the calls; prints "ok" at the end, or fails
"""
import sys
import threading
from concurrent import futures

import grpc

KEY = (("x-api-key", "website-key-0123456789-0123456789"),)


def same(message):
    return message


class Calls(grpc.GenericRpcHandler):
    """Messages are bytes, so no generated code is needed."""

    def service(self, details):
        kinds = {
            "/calls.Api/Unary": lambda: grpc.unary_unary_rpc_method_handler(self.unary),
            "/calls.Api/Server": lambda: grpc.unary_stream_rpc_method_handler(lambda request, _: (request for _ in range(5))),
            "/calls.Api/Client": lambda: grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
            "/calls.Api/Both": lambda: grpc.stream_stream_rpc_method_handler(lambda requests, _: (request for request in requests)),
            "/calls.Api/Lost": lambda: grpc.unary_unary_rpc_method_handler(self.lost),
            "/calls.Api/Slow": lambda: grpc.unary_unary_rpc_method_handler(self.slow),
            "/calls.Api/Cancelled": lambda: grpc.unary_unary_rpc_method_handler(self.cancelled),
        }
        kind = kinds.get(details.method)
        return kind and kind()

    gone = threading.Event()

    def unary(self, request, context):
        context.set_trailing_metadata((("x-told", "1"), ("x-bytes-bin", b"\x00\xff")))
        return request

    def lost(self, _, context):
        context.abort(grpc.StatusCode.DATA_LOSS, "lost: 100 % of ünïts")

    def slow(self, request, context):
        context.add_callback(self.gone.set)
        self.gone.wait(10)
        return request

    def cancelled(self, *_):
        return b"yes" if self.gone.wait(5) else b"no"


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Calls(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    # Ends with the test, which holds the other end.
    sys.stdin.read()


def status(call, **options):
    try:
        call(b"", **options)
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("it went through")


def call(address):
    channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    code = grpc.StatusCode
    unary = channel.unary_unary("/calls.Api/Unary", same, same)
    answer, told = unary.with_call(b"hello", metadata=KEY)
    trailers = {item.key: item.value for item in told.trailing_metadata()}
    assert (answer, told.code()) == (b"hello", code.OK), told
    assert (trailers["x-told"], trailers["x-bytes-bin"]) == ("1", b"\x00\xff"), trailers
    large = bytes(4 << 20)
    assert unary(large, metadata=KEY) == large
    assert list(channel.unary_stream("/calls.Api/Server", same, same)(b"s", metadata=KEY)) == [b"s"] * 5
    assert channel.stream_unary("/calls.Api/Client", same, same)(iter([b"a", b"b"]), metadata=KEY) == b"ab"
    both = [str(number).encode() for number in range(100)]
    assert list(channel.stream_stream("/calls.Api/Both", same, same)(iter(both), metadata=KEY)) == both
    assert [one.result() for one in [unary.future(b"x%d" % number, metadata=KEY) for number in range(300)]] == [b"x%d" % number for number in range(300)]
    lost = status(channel.unary_unary("/calls.Api/Lost", same, same), metadata=KEY)
    assert lost == (code.DATA_LOSS, "lost: 100 % of ünïts"), lost
    assert status(channel.unary_unary("/calls.Api/Slow", same, same), metadata=KEY, timeout=0.5)[0] == code.DEADLINE_EXCEEDED
    assert channel.unary_unary("/calls.Api/Cancelled", same, same)(b"", metadata=KEY) == b"yes", "the server was told"
    refused = channel.unary_unary("/calls.Api/Unary", same, same)
    assert status(refused)[0] == code.UNAUTHENTICATED
    admin = channel.unary_unary("/admin.Api/Unary", same, same)
    assert status(admin, metadata=KEY)[0] == code.PERMISSION_DENIED
    assert status(channel.unary_unary("/nowhere.Api/Unary", same, same), metadata=KEY)[0] == code.NOT_FOUND
    assert status(channel.unary_unary("/down.Api/Unary", same, same), metadata=KEY)[0] == code.UNAVAILABLE
    print("ok")


if sys.argv[1] == "serve":
    serve()
else:
    call(sys.argv[2])
