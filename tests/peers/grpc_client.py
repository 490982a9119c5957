"""Makes the calls it is told on standard input, one JSON object a line, and prints what came of each.

    {"call": "/t.S/Echo", "kind": "unary", "send": ["text", 1000], "key": "…", "timeout": 5, "times": 1, "cancel_after": 1}

Its arguments: the address of furt and, for TLS, the file of the authority and the name in the certificate.
A number among what is sent stands for a message of so many bytes. The kinds: unary, down, up, both.
"""

import hashlib
import json
import sys

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
address, *secure = sys.argv[1:]
if secure:
    authority, name = secure
    with open(authority, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(address, credentials, options=[*OPTIONS, ("grpc.ssl_target_name_override", name)])
else:
    channel = grpc.insecure_channel(address, options=OPTIONS)
MAKERS = {
    "unary": channel.unary_unary,
    "down": channel.unary_stream,
    "up": channel.stream_unary,
    "both": channel.stream_stream,
}


def same(message):
    return message


def message(item):
    return (b"0123456789abcdef" * (item // 16 + 1))[:item] if isinstance(item, int) else item.encode()


def shown(answer):
    """A short answer as it is, a long one by its length and hash."""
    return answer.decode() if len(answer) < 1000 else [len(answer), hashlib.sha256(answer).hexdigest()]


def plain(metadata):
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in metadata or ()}


def make(order):
    kind = order["kind"]
    messages = [message(item) for item in order["send"]]
    metadata = [("x-api-key", order["key"])] if "key" in order else []
    argument = iter(messages) if kind in ("up", "both") else messages[0]
    function = MAKERS[kind](order["call"], same, same)
    called = function.future if kind in ("unary", "up") else function
    return called(argument, timeout=order.get("timeout", 20), metadata=metadata)


def outcome(order, call):
    answers = []
    try:
        if order["kind"] in ("down", "both"):
            for answer in call:
                answers.append(shown(answer))
                if len(answers) == order.get("cancel_after"):
                    print(json.dumps({"received": len(answers)}), flush=True)
                    call.cancel()
        else:
            answers.append(shown(call.result()))
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    return {
        "code": call.code().name,
        "details": call.details(),
        "answers": answers,
        "first": plain(call.initial_metadata()),
        "last": plain(call.trailing_metadata()),
    }


for line in sys.stdin:
    order = json.loads(line)
    calls = [make(order) for _ in range(order.get("times", 1))]
    outcomes = [outcome(order, call) for call in calls]
    print(json.dumps(outcomes if "times" in order else outcomes[0]), flush=True)
