"""Apps that are attacked, or that attack their own server; with nothing but the ASGI interface."""

from __future__ import annotations

import os
import sys
import tempfile
import time

from selectserve import sleep

ROUTES = {}


def route(function):
    """Serve ``function`` under its own name."""
    ROUTES["/" + function.__name__] = function
    return function


async def app(scope, receive, send):
    """Call what the path names; without a lifespan."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await ROUTES[scope["path"]](scope, receive, send)


async def respond(send, body):
    """Send a whole response."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def note(scope, text):
    """Tell the test something."""
    print("APP", scope["query_string"].decode(), text, file=sys.stderr, flush=True)


@route
async def hello(scope, receive, send):
    await respond(send, b"hello")


@route
async def wait(scope, receive, send):
    """Wait as many seconds as the query says."""
    await sleep(float(scope["query_string"]))
    await respond(send, b"waited")


def hold_the_reactor(path):
    """Block until the file exists; the deadline is for a test that has died."""
    end = time.monotonic() + 30
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.001)


@route
async def block(scope, receive, send):
    """Hold the reactor until a file exists whose name is told."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "open")
        note(scope, path)
        hold_the_reactor(path)
    await respond(send, b"held")


async def hangs_at_startup(scope, receive, send):
    await receive()
    await sleep(1e6)


async def hangs_at_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await sleep(1e6)
