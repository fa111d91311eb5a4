"""Starlette apps: hello, a five-chunk stream, the same behind BaseHTTPMiddleware, and a
FileResponse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request


async def say_hello(request: Request) -> Response:
    return PlainTextResponse("Hello, world!")


async def five_chunks() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield b"x" * 1024


async def say_five_chunks(request: Request) -> Response:
    return StreamingResponse(five_chunks(), media_type="text/plain")


async def give_file(request: Request) -> Response:
    return FileResponse(os.environ["BENCH_FILE"])


class Passing(BaseHTTPMiddleware):
    """Adds one header, like most middleware of its kind."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response


hello = Starlette(routes=[Route("/", say_hello)])
stream = Starlette(routes=[Route("/", say_five_chunks)])
middleware_stream = Starlette(
    routes=[Route("/", say_five_chunks)], middleware=[Middleware(Passing)]
)
download = Starlette(routes=[Route("/{name}", give_file)])
