"""python-socketio: polling and WebSocket, rooms, background tasks."""

from __future__ import annotations

import socketio

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
app = socketio.ASGIApp(server)


@server.event
async def shout(sid, text):
    await server.emit("shouted", text.upper(), to=sid)
    return "done"


@server.event
async def later(sid):
    async def work():
        await server.sleep(0.01)
        await server.emit("worked", 42, to=sid)

    server.start_background_task(work)
