"""Apps that are attacked, or that attack their own server; with nothing but the ASGI interface."""

from __future__ import annotations

from selectserve import sleep


async def hangs_at_startup(scope, receive, send):
    await receive()
    await sleep(1e6)


async def hangs_at_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await sleep(1e6)
