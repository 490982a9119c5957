"""A WebSocket service of the package websockets. Tells what it sees, one JSON object a line.

/echo sends every message back; /close/CODE closes with CODE at the first message; /ping pings at every message and
tells of the pong; /plain and /forbidden answer the handshake with 200 and 403; /health is what furt's probes get.
"""

import asyncio
import http
import json

import websockets
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response


def tell(event, **members):
    print(json.dumps({"event": event, **members}), flush=True)


def answer(status, text):
    body = text.encode()
    fields = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
    return Response(status.value, status.phrase, Headers(fields), body)


def chosen(connection, offered):
    return next((name for name in ("chat.v2", "chat.v1") if name in offered), None)


def before_the_handshake(connection, request):
    path = request.path.partition("?")[0]
    if path == "/health":
        return answer(http.HTTPStatus.OK, "fine")
    tell("asked", path=request.path, fields={name.lower(): value for name, value in request.headers.raw_items()})
    if path.endswith("/plain"):
        return answer(http.HTTPStatus.OK, "not here")
    if path.endswith("/forbidden"):
        return answer(http.HTTPStatus.FORBIDDEN, "not you")
    return None


async def handle(connection):
    path = connection.request.path.partition("?")[0]
    tell("opened", path=path, subprotocol=connection.subprotocol)
    try:
        async for message in connection:
            if "/close/" in path:
                await connection.close(int(path.rpartition("/")[2]), "as you say")
            elif path.endswith("/ping"):
                latency = await (await connection.ping(b"are you there"))
                tell("ponged", latency=latency)
                await connection.send("ponged")
            else:
                await connection.send(message)
    except websockets.ConnectionClosedError:
        pass
    tell("closed", path=path, code=connection.close_code, reason=connection.close_reason)


async def main():
    options = {
        "process_request": before_the_handshake,
        "subprotocols": ["chat.v2", "chat.v1"],
        "select_subprotocol": chosen,
        "ping_interval": None,
        "max_size": None,
    }
    async with serve(handle, "127.0.0.1", 0, **options) as server:
        tell("listening", port=server.sockets[0].getsockname()[1])
        await server.serve_forever()


asyncio.run(main())
