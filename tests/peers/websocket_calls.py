"""WebSocket through furt, by the websockets package on both sides.

websocket_calls.py serve            an echo server on a free port, which it prints
websocket_calls.py call HOST:PORT   prints "open" once a connection stands, waits for a line, and prints "ok" at the end
"""
import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed, InvalidStatus

KEY = {"X-API-Key": "website-key-0123456789-0123456789"}


async def echo(connection):
    try:
        async for message in connection:
            if message == "close":
                await connection.close(4001, "as asked")
            await connection.send(message)
    except ConnectionClosed:
        pass


async def line():
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def serve():
    async with listen(echo, "127.0.0.1", 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await line()


async def call(address):
    url = f"ws://{address}/ws/echo"
    for headers, expected in [({}, 401), ({"X-API-Key": "no-such-key-0123456789abcdef0123456789ab"}, 401)]:
        try:
            async with connect(url, additional_headers=headers):
                raise AssertionError("it stands")
        except InvalidStatus as refused:
            assert refused.response.status_code == expected, refused.response
    async with connect(url, additional_headers=KEY, max_size=None) as connection:
        for message in ["text", b"bytes", "x" * 200_000, bytes(3 << 20)]:
            await connection.send(message)
            assert await connection.recv() == message
        await connection.send(["in ", "three ", "pieces"])
        assert await connection.recv() == "in three pieces"
        await (await connection.ping())
        print("open", flush=True)
        # Silent meanwhile, for longer than a body may be.
        await line()
        await connection.send("still there")
        assert await connection.recv() == "still there"
        await connection.send("close")
        try:
            await connection.recv()
            raise AssertionError("it goes on")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as asked"), closed
    print("ok", flush=True)


asyncio.run(serve() if sys.argv[1] == "serve" else call(sys.argv[2]))
