"""Starlette."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note


@contextlib.asynccontextmanager
async def lifespan(app):
    note("startup")
    yield {"made": "at startup"}
    note("shutdown")


class AddHeader(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-middleware"] = "here"
        return response


async def asynchronous(request):
    await asyncio.sleep(0)
    return PlainTextResponse("async")


def synchronous(request):
    return PlainTextResponse("sync")


async def stream(request):
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


async def read_stream(request):
    size = await measured(request.stream())
    return PlainTextResponse(str(size))


async def background(request):
    async def work():
        await asyncio.sleep(0.01)
        note("background done")

    return PlainTextResponse("answered", background=BackgroundTask(work))


async def file(request):
    return FileResponse(FILE)


async def form(request):
    async with request.form() as fields:
        return PlainTextResponse(fields["name"])


async def upload(request):
    async with request.form() as fields:
        data = await fields["file"].read()
        return PlainTextResponse(f"{fields['file'].filename} {len(data)}")


async def state(request):
    return PlainTextResponse(request.state.made)


async def error(request):
    raise ValueError("of the app")


async def echo(request):
    return JSONResponse({"path": request.url.path, "query": request.url.query, "m": request.method})


async def endless(request):
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return StreamingResponse(parts())


async def idle(request):
    async def work():
        note("background done")

    return StreamingResponse(idle_parts(), background=BackgroundTask(work))


async def error_late(request):
    return StreamingResponse(failing_parts())


async def wait_for_client(request):
    note("waiting")
    while (await request.receive())["type"] != "http.disconnect":
        pass
    note("client left")
    return PlainTextResponse("nobody")


async def socket(websocket):
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    try:
        while True:
            text = await websocket.receive_text()
            if text == "close":
                await websocket.close(4001, "as asked")
                return
            if text == "fail":
                raise ValueError("of the app")
            await websocket.send_text(text.upper())
    except WebSocketDisconnect as exc:
        note("websocket closed", exc.code)


async def refused(websocket):
    await websocket.close()


app = Starlette(
    lifespan=lifespan,
    middleware=[Middleware(AddHeader)],
    routes=[
        Route("/async", asynchronous),
        Route("/sync", synchronous),
        Route("/stream", stream),
        Route("/read-stream", read_stream, methods=["POST"]),
        Route("/background", background),
        Route("/file", file),
        Route("/form", form, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/state", state),
        Route("/error", error),
        Route("/echo/{rest:path}", echo, methods=["GET", "POST"]),
        Route("/endless", endless),
        Route("/error-late", error_late),
        Route("/idle", idle),
        Route("/wait-for-client", wait_for_client),
        WebSocketRoute("/ws", socket),
        WebSocketRoute("/ws-refused", refused),
    ],
)
