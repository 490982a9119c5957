#!/usr/bin/env python3
"""A service of comments that keeps itself registered with furt, over plain JSON.

Python 3.9 or later, nothing but its standard library. Start it with

    python3 examples/python/comments.py

It is told by its environment: FURT_GATEWAY (furt's internal listener), FURT_TOKEN (the token of its
grant, if that has one), SERVICE, INSTANCE (one name for each copy that runs) and PORT (0: any that is free).
"""

import json
import os
import random
import signal
import socket
import sys
import threading
import urllib.request
from collections import deque
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

GATEWAY = os.environ.get("FURT_GATEWAY", "127.0.0.1:7810")
TOKEN = os.environ.get("FURT_TOKEN", "")
SERVICE = os.environ.get("SERVICE", "comments")
INSTANCE = os.environ.get("INSTANCE", "default")
PORT = int(os.environ.get("PORT", "7812"))
DRAIN_SECONDS = 30
LONGEST = 64 * 1024  # bytes of a comment

comments = deque(maxlen=1000)  # (path, comment), the newest ones
registration = {}  # furt's last answer to a registration
again = threading.Event()  # register now and not when it is due
stopping = threading.Event()


class Comments(BaseHTTPRequestHandler):
    """One request a connection, as HTTP/1.0 has it: none waits idle when it is time to go."""

    timeout = 30  # seconds without a byte from the other side

    def do_GET(self):
        if self.path == "/health":
            self.look_at_probe()
            self.answer(200, "well")
        else:
            self.answer(200, [comment for page, comment in list(comments) if page == self.page()])

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.answer(411, "a comment has a Content-Length")
        elif int(length) > LONGEST:
            self.answer(413, "a comment has at most 64 KiB")
            # The rest is read and thrown away: closing over it could take the answer along.
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(LONGEST):
                pass
        else:
            text = self.rfile.read(int(length)).decode(errors="replace")
            # furt has looked at the caller's key; who it is comes in this header.
            comment = {"author": self.headers.get("X-API-Key-Name"), "text": text}
            comments.append((self.page(), comment))
            self.answer(201, comment)

    def look_at_probe(self):
        """Another epoch: furt has started anew. `false`: it remembers us and would like to hear from us."""
        epoch = self.headers.get("X-Furt-Epoch")
        if epoch and (epoch != registration.get("epoch") or self.headers.get("X-Furt-Registered") == "false"):
            again.set()

    def page(self):
        return self.path.partition("?")[0]

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # callers of a GET route may send it

    def log_message(self, *_):
        """Nothing: furt's access log has every request."""


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for the requests in flight
    request_queue_size = 128


# Whatever http_proxy says: furt's internal listener takes nothing that came through a proxy.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask_furt(path, body, timeout):
    """Posts to the internal listener and gives the `data` of the answer."""
    request = urllib.request.Request(f"http://{GATEWAY}/internal/{path}", data=body)
    if TOKEN:
        request.add_header("Authorization", f"Bearer {TOKEN}")
    with direct.open(request, timeout=timeout) as answer:
        return json.load(answer)["data"]


def stay_registered(url):
    """Registers, and renews, until it is time to go."""
    routes = [
        {"method": "GET", "path": f"/api/{SERVICE}/*", "permission": "comments:read"},
        {"method": "POST", "path": f"/api/{SERVICE}/*", "permission": "comments:write"},
    ]
    body = json.dumps({"service": SERVICE, "instance": INSTANCE, "url": url, "routes": routes}).encode()
    losses = 0
    while not stopping.is_set():
        try:
            registration.update(ask_furt("register-service", body, timeout=10))
            # A little early, and not in step with everybody else.
            losses, pause = 0, registration["renew_after_seconds"] * random.uniform(0.8, 1)
        except (OSError, HTTPException, ValueError, LookupError) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                # A person has to mend this, in furt.conf or here: it is said, and tried again slowly.
                say(f"furt refuses the registration: {error.code} {error.read(4096).decode(errors='replace')}")
                pause = random.uniform(15, 30)
            else:
                # furt is away. Soon at first, then less often, each service at a moment of its own.
                say(f"not registered: {error}")
                losses, pause = losses + 1, random.uniform(0, min(10, 0.2 * 2 ** min(losses, 6)))
        again.wait(pause)
        again.clear()


def drain():
    """The farewell: furt sends nothing new, waits for what is in flight, and forgets this copy."""
    try:
        # With the id, so that a farewell that comes late does not take out a successor.
        query = f"registration_id={registration['registration_id']}&seconds={DRAIN_SECONDS}"
        ask_furt(f"services/{SERVICE}/instances/{INSTANCE}/drain?{query}", b"", timeout=DRAIN_SECONDS + 5)
        say("drained and deregistered")
    except (OSError, HTTPException, ValueError, LookupError) as error:
        say(f"leaves without a farewell: {error!r}")


def say(message):
    print(f"{SERVICE}/{INSTANCE}: {message}", file=sys.stderr, flush=True)


def main():
    # Blocked in every thread, so that they stay until `sigwait` takes one.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    # It listens before it registers: furt probes as soon as it knows the service.
    server = Server(("127.0.0.1", PORT), Comments)
    serving = threading.Thread(target=server.serve_forever)
    registering = threading.Thread(target=stay_registered, args=[f"http://127.0.0.1:{server.server_port}"])
    serving.start()
    registering.start()
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    stopping.set()
    again.set()
    registering.join()
    drain()
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
