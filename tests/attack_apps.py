"""Apps that are attacked, or that attack their own server; with nothing but the ASGI interface."""

from __future__ import annotations

import gc
import os
import tempfile
import time

from selectserve import Cancelled, Event, sleep

from .telling import say

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
    say("APP", scope["query_string"].decode(), text)


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
    say("APP starting")
    await sleep(1e6)


async def hangs_at_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await sleep(1e6)


# -- what is left: told by the server's own process ------------------------------------------------

LIFE = ("HTTPConnection", "WebSocketConnection", "HTTPCycle", "Transport", "Task", "Deadline")
GATES = {}
PROGRESS = {}


def gate(name):
    """Return the Event of that name."""
    return GATES.setdefault(name, Event())


@route
async def open_gate(scope, receive, send):
    gate(scope["query_string"]).set()
    await respond(send, b"open")


@route
async def left(scope, receive, send):
    """Answer with how much there is of whatever a connection is made of."""
    gc.collect()
    counts = dict.fromkeys((*LIFE, "descriptors", "timers", "tasks"), 0)
    for thing in gc.get_objects():
        name = type(thing).__name__
        if name in LIFE and type(thing).__module__.startswith("selectserve"):
            counts[name] += 1
        elif name == "Reactor":
            counts["timers"] += sum(entry[2].action is not None for entry in thing.timers)
        elif name == "NativeStepper":
            counts["tasks"] += len(thing.tasks)
    if os.path.isdir("/proc/self/fd"):
        counts["descriptors"] = len(os.listdir("/proc/self/fd"))
    await respond(send, repr(counts).encode())


@route
async def refused(scope, receive, send):
    """Answer with how often the listeners were out of descriptors; takes none itself."""
    counts = [t.refused for t in gc.get_objects() if type(t).__name__ == "Listener"]
    await respond(send, b"%d" % sum(counts))


@route
async def progress(scope, receive, send):
    """Answer with how far the app of that name has come."""
    await respond(send, b"%d" % PROGRESS.get(scope["query_string"], 0))


@route
async def download(scope, receive, send):
    """Send 50 MB in parts."""
    part = b"x" * 65536
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(800):
        await send({"type": "http.response.body", "body": part, "more_body": True})
        PROGRESS[scope["query_string"]] = number + 1
    await send({"type": "http.response.body", "body": b""})


@route
async def lump(scope, receive, send):
    """Send 300 KB in one message."""
    PROGRESS[scope["query_string"]] = PROGRESS.get(scope["query_string"], 0) + 1
    await respond(send, b"x" * 300_000)


@route
async def upload(scope, receive, send):
    """Wait for the gate, and only then take the body; answer with its size."""
    await gate(scope["query_string"]).wait()
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        PROGRESS[scope["query_string"]] = size
    await respond(send, b"%d" % size)


@route
async def stuck(scope, receive, send):
    """Answer when the gate opens."""
    await gate(scope["query_string"]).wait()
    await respond(send, b"open")


@route
async def watch(scope, receive, send):
    """Wait for the disconnect, behind whatever was asked."""
    note(scope, "watches")
    while (await receive())["type"] != "http.disconnect":
        pass
    note(scope, "disconnected")


@route
async def events(scope, receive, send):
    """Server-sent events without end."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        while True:
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await sleep(0.05)
    finally:
        note(scope, "events ended")


@route
async def echo(scope, receive, send):
    """Answer with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await respond(send, b"%d" % size)


@route
async def stubborn(scope, receive, send):
    """Swallow every cancel, for a while."""
    note(scope, "begun")
    for _ in range(100):
        try:
            await sleep(1)
        except Cancelled:
            pass


async def with_lifespan(scope, receive, send):
    """The same with a lifespan that says how it ends."""
    if scope["type"] != "lifespan":
        await app_of_all(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await sleep(0.05)
    say("APP lifespan shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def app_of_all(scope, receive, send):
    """Echo WebSocket messages, else call what the path names."""
    if scope["type"] == "http":
        await app(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/deaf":
        await gate(scope["query_string"]).wait()
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            note(scope, f"disconnect {message['code']}")
            return
        await send({"type": "websocket.send", "text": message["text"]})
