"""The app that the fuzzing client talks to: it echoes every message."""

from __future__ import annotations


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError(f"echo speaks websocket only, not {scope['type']}")
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({**message, "type": "websocket.send"})
