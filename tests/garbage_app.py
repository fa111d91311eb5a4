"""A bare app for every ``--loop`` that counts what requests leave to the garbage collector."""

from __future__ import annotations

import collections
import gc

gc.disable()


def garbage():
    """Name what only the collector can free, with its counts."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    names = (f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.garbage)
    found = collections.Counter(names)
    gc.garbage.clear()
    gc.set_debug(0)
    gc.collect()
    return repr(dict(found)).encode()


async def app(scope, receive, send):
    """Answer, wait for the body, raise, or wait until the client has left, as the path says."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "websocket":
        await talk(receive, send)
        return
    path, body = scope["path"], b"done"
    if path == "/beside":
        await answer_beside_a_listener(receive, send)
        return
    if path == "/fails":
        raise ValueError("of the app")
    message = await receive()
    while path == "/waits" and message.get("more_body"):
        message = await receive()
    while path == "/left" and message["type"] != "http.disconnect":
        message = await receive()
    if path == "/garbage":
        body = garbage()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


async def answer_beside_a_listener(receive, send):
    """Do as Django does: what the one who listens raises has this frame in its traceback."""
    import asyncio  # not for those who are stepped natively

    async def listen():
        await receive()
        raise ConnectionError("the client has left")

    async def answer():
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"done"})

    await receive()
    tasks = [asyncio.ensure_future(listen()), asyncio.ensure_future(answer())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
        try:
            await task
        except (ConnectionError, asyncio.CancelledError):
            pass


async def talk(receive, send):
    """Echo until the client has left."""
    await receive()
    await send({"type": "websocket.accept"})
    message = await receive()
    while message["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})
        message = await receive()
