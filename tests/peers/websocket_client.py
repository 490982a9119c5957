"""A WebSocket client of the package websockets. Does what it is told, one JSON object a line: {"do": …, …}."""

import hashlib
import json
import ssl
import sys
import time

import websockets
from websockets.sync.client import connect

PATIENCE = 20

# The connection that stands, once it was opened.
connection = None


def pattern(size):
    return bytes(number * 7 % 251 for number in range(size))


def opened(command):
    global connection
    context = None
    if "authority" in command:
        context = ssl.create_default_context(cafile=command["authority"])
    fields = {"X-API-Key": command["key"]} if "key" in command else {}
    options = {
        "additional_headers": fields,
        "open_timeout": PATIENCE,
        "ping_interval": None,
        "max_size": None,
        "close_timeout": PATIENCE,
        "compression": command.get("compression"),
        "subprotocols": command.get("subprotocols"),
        "ssl": context,
        "server_hostname": command.get("name"),
        "proxy": None,
    }
    try:
        connection = connect(command["url"], **options).__enter__()
    except websockets.exceptions.InvalidStatus as refused:
        response = refused.response
        body = (response.body or b"").decode()
        return {"status": response.status_code, "body": body, "reason": response.headers.get("X-Furt-Reason")}
    return {
        "status": connection.response.status_code,
        "gateway": connection.response.headers.get("X-Gateway"),
        "subprotocol": connection.subprotocol,
        "extensions": connection.response.headers.get("Sec-WebSocket-Extensions"),
    }


def told(message):
    text = isinstance(message, str)
    data = message.encode() if text else message
    told = {"kind": "text" if text else "binary", "length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if text and len(data) < 200:
        told["text"] = data.decode()
    return told


def sent(command):
    if "text" in command:
        message = command["text"]
    elif "fragments" in command:
        message = [pattern(size) for size in command["fragments"]]
    else:
        message = pattern(command["size"])
    connection.send(message)
    data = b"".join(message) if isinstance(message, list) else message.encode() if isinstance(message, str) else message
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def closed():
    try:
        connection.recv(timeout=PATIENCE)
        return {"error": "a message came"}
    except websockets.ConnectionClosed:
        return {"code": connection.close_code, "reason": connection.close_reason}


def done(command):
    do = command["do"]
    if do == "open":
        return opened(command)
    if do == "send":
        return sent(command)
    if do == "receive":
        return told(connection.recv(timeout=PATIENCE))
    if do == "ping":
        started = time.monotonic()
        return {"ponged": connection.ping(b"anybody").wait(PATIENCE), "took": time.monotonic() - started}
    if do == "close":
        connection.close(command["code"], command["reason"])
        return {"code": connection.close_code, "reason": connection.close_reason}
    if do == "closed":
        return closed()
    raise ValueError(do)


for line in sys.stdin:
    try:
        answer = done(json.loads(line))
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
