"""An ASGI app that imports asyncio only when asked for something that needs it."""

from __future__ import annotations

import sys


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    body = repr("asyncio" in sys.modules).encode()
    if scope["path"] == "/sleep":
        import asyncio

        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        task = asyncio.current_task()
        assert task in asyncio.all_tasks()
        body = type(task).__name__.encode()
    elif scope["path"] == "/exit":
        import asyncio

        await asyncio.sleep(0)
        raise SystemExit(7)
    elif scope["path"] == "/background":
        import asyncio

        body = repr(asyncio.create_task(asyncio.sleep(3600)).done()).encode()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})
