"""FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Form,
    Request,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note


@contextlib.asynccontextmanager
async def lifespan(app):
    note("startup")
    yield {"made": "at startup"}
    note("shutdown")


app = FastAPI(lifespan=lifespan, default_response_class=PlainTextResponse)


@app.middleware("http")
async def add_header(request, call_next):
    response = await call_next(request)
    response.headers["x-middleware"] = "here"
    return response


async def opened():
    note("dependency opened")
    try:
        yield "dependency"
    finally:
        note("dependency closed")


def opened_in_thread():
    note("sync dependency opened")
    yield "sync dependency"
    note("sync dependency closed")


@app.get("/async")
async def asynchronous():
    await asyncio.sleep(0)
    return "async"


@app.get("/sync")
def synchronous():
    return "sync"


@app.get("/dependency")
async def dependency(
    one: Annotated[str, Depends(opened)], other: Annotated[str, Depends(opened_in_thread)]
):
    return f"{one}, {other}"


@app.get("/stream")
async def stream():
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


@app.post("/read-stream")
async def read_stream(request: Request):
    size = await measured(request.stream())
    return str(size)


@app.get("/background")
async def background(tasks: BackgroundTasks):
    async def work():
        await asyncio.sleep(0.01)
        note("background done")

    tasks.add_task(work)
    return "answered"


@app.get("/file", response_class=FileResponse)
async def file():
    return FILE


@app.post("/form")
async def form(name: Annotated[str, Form()]):
    return name


@app.post("/upload")
def upload(file: Annotated[UploadFile, File()]):
    return f"{file.filename} {len(file.file.read())}"


@app.get("/state")
def state(request: Request):
    return request.state.made


@app.get("/error")
async def error():
    raise ValueError("of the app")


@app.api_route("/echo/{rest:path}", methods=["GET", "POST"])
async def echo(request: Request):
    return repr((request.url.path, request.url.query, request.method))


@app.get("/endless")
async def endless():
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return StreamingResponse(parts())


@app.get("/idle")
async def idle():
    return StreamingResponse(idle_parts())


@app.get("/error-late")
async def error_late():
    return StreamingResponse(failing_parts())


@app.get("/wait-for-client")
async def wait_for_client(request: Request):
    note("waiting")
    while (await request.receive())["type"] != "http.disconnect":
        pass
    note("client left")
    return "nobody"


@app.websocket("/ws")
async def socket(websocket: WebSocket):
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


@app.websocket("/ws-refused")
async def refused(websocket: WebSocket):
    await websocket.close()
