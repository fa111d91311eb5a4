"""Small apps whose whole life is told in tests/test_trace.py, and looked at by the inspector."""

from __future__ import annotations

import time

from selectserve import Event, sleep

waiting = Event()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError("no lifespan")
    if scope["type"] == "websocket":
        await talk(receive, send)
    elif scope["path"] == "/sleep":
        await sleep(0.01)
        await answer(send, b"slept")
    elif scope["path"] == "/hang":
        await hang()
    elif scope["path"] == "/hold":
        time.sleep(0.2)  # what an app must not do
        await answer(send, b"held")
    elif scope["path"] == "/raise":
        raise ValueError("a bug of the app's")
    elif scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 30_000_000, "more_body": True})
        await send({"type": "http.response.body"})
    elif scope["method"] == "POST":
        await answer(send, b"%d bytes" % len(await read(receive)))
    else:
        await answer(send, b"hello")


async def read(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    return body


async def answer(send, body):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hang():
    await waiting.wait()  # for ever


async def talk(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"].upper()})
