"""Starlette's FileResponse and StaticFiles on $FILES_HOME, behind middleware that wraps send().

What the outermost app is sent is told to the test, so that it sees that it was pathsend.
"""

from __future__ import annotations

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from . import note

HOME = Path(os.environ["FILES_HOME"])


async def once(request):
    """A file that is removed when it has been sent."""
    path = HOME / "once"
    path.write_bytes(b"once" * 300_000)
    return FileResponse(path, background=BackgroundTask(path.unlink))


async def missing(request):
    return FileResponse(HOME / "missing")


async def download(request):
    return FileResponse(HOME / "large", filename="a name.bin")


class Passing(BaseHTTPMiddleware):
    """Adds a header, like most of its kind."""

    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response


inner = Starlette(
    routes=[
        Route("/once", once),
        Route("/missing", missing),
        Route("/download", download),
        Mount("/static", StaticFiles(directory=HOME)),
    ]
)
inner.add_middleware(Passing)
inner.add_middleware(GZipMiddleware)


async def app(scope, receive, send):
    """Tell which messages are sent."""
    kinds = []

    async def tell(message):
        kinds.append(message["type"].rpartition(".")[2])
        await send(message)

    try:
        await inner(scope, receive, tell)
    finally:
        if scope["type"] == "http":
            note(scope["query_string"].decode(), *kinds)
