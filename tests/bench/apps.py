"""Plain ASGI apps, one per workload: `python -m selectserve tests.bench.apps:hello`.

They import nothing heavy, so that what is weighed is the server. Each answers GET with status 200,
which is how the harness knows that a server is up.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

KILOBYTE, MEGABYTE = 1024, 1024 * 1024
TEXT = (b"content-type", b"text/plain")
BINARY = (b"content-type", b"application/octet-stream")
# Encoded once: json.dumps of 2 KB takes longer than a whole request, and would hide the server.
DOCUMENT = json.dumps(
    {
        "page": 1,
        "items": [
            {"id": number, "name": f"Item number {number}", "tags": ["a", "b"], "in_stock": True}
            for number in range(26)
        ],
    }
).encode()
ONE_MEGABYTE = b"x" * MEGABYTE
SIXTEEN_KILOBYTES = b"x" * (16 * KILOBYTE)


async def answer(send: Send, body: bytes, kind: tuple[bytes, bytes] = TEXT) -> None:
    """Send a whole response of status 200."""
    headers = [kind, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> list[bytes]:
    """Return the pieces of the request body."""
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return pieces


async def hello(scope: Message, receive: Receive, send: Send) -> None:
    """Say hello."""
    await answer(send, b"Hello, world!")


async def document(scope: Message, receive: Receive, send: Send) -> None:
    """Answer 2 KB of JSON."""
    await answer(send, DOCUMENT, (b"content-type", b"application/json"))


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answer the request body."""
    await answer(send, b"".join(await read_body(receive)), BINARY)


async def sink(scope: Message, receive: Receive, send: Send) -> None:
    """Answer how many bytes the request body had."""
    await answer(send, b"%d" % sum(map(len, await read_body(receive))))


async def megabyte(scope: Message, receive: Receive, send: Send) -> None:
    """Answer 1 MB in one message."""
    await answer(send, ONE_MEGABYTE, BINARY)


async def stream(scope: Message, receive: Receive, send: Send) -> None:
    """Answer 64 pieces of 16 KB, without a Content-Length."""
    await send({"type": "http.response.start", "status": 200, "headers": [BINARY]})
    for _ in range(64):
        await send({"type": "http.response.body", "body": SIXTEEN_KILOBYTES, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def events(scope: Message, receive: Receive, send: Send) -> None:
    """Answer 200 server-sent events, one message each."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(200):
        event = b"id: %d\ndata: something happened\n\n" % number
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def sized(scope: Message, receive: Receive, send: Send) -> None:
    """Read the body, then answer as many bytes as the path says (`/65536`), 64 KB at a time."""
    await read_body(receive)
    left = int(scope["path"][1:] or 0)
    headers = [BINARY, (b"content-length", b"%d" % left)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while left > 65536:
        await send({"type": "http.response.body", "body": ONE_MEGABYTE[:65536], "more_body": True})
        left -= 65536
    await send({"type": "http.response.body", "body": ONE_MEGABYTE[:left]})


async def download(scope: Message, receive: Receive, send: Send) -> None:
    """Answer the file $BENCH_FILE by name, where the server has `http.response.pathsend`."""
    if "http.response.pathsend" not in scope.get("extensions", {}):
        raise RuntimeError("this server has no http.response.pathsend")
    path = os.environ["BENCH_FILE"]
    headers = [BINARY, (b"content-length", b"%d" % os.stat(path).st_size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.pathsend", "path": path})


async def websocket_echo(scope: Message, receive: Receive, send: Send) -> None:
    """Send every message back."""
    if scope["type"] == "http":
        return await hello(scope, receive, send)
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return None
        await send({"type": "websocket.send", "bytes": message["bytes"]})
