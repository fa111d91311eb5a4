"""FastAPI with nothing of asyncio's in it: for every ``--loop``.

FastAPI itself reaches for anyio, which knows asyncio and trio only, when an endpoint is a plain
function or a dependency yields; ``ANY`` are the paths that do without it, and run natively, too.
"""

from __future__ import annotations

import contextlib

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from . import CHUNKS, note


class Item(BaseModel):
    name: str
    price: float


@contextlib.asynccontextmanager
async def lifespan(app):
    note("startup")
    yield {"made": "at startup"}
    note("shutdown")


app = FastAPI(lifespan=lifespan)


@app.get("/async")
async def asynchronous():
    return {"made": [1, 2, 3]}


async def returned_by():
    return "dependency"


@app.get("/returned")
async def returned(one: str = Depends(returned_by)):
    return one


@app.post("/item")
async def item(item: Item) -> Item:
    return item


@app.get("/stream")
async def stream():
    async def parts():
        for part in CHUNKS:
            yield part

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/state")
async def state(request: Request):
    return request.state.made


@app.get("/header/{name}", response_class=PlainTextResponse)
async def header(name: str, b: str, request: Request):
    return f"{name} {b} {request.headers['host'].partition(':')[0]}"


@app.get("/error")
async def error():
    raise HTTPException(418, "as asked")


@app.websocket("/ws")
async def socket(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            await websocket.send_text((await websocket.receive_text()).upper())
    except WebSocketDisconnect as exc:
        note("websocket closed", exc.code)


# -- by anyio -------------------------------------------------------------------------------------


@app.get("/sync")
def synchronous():
    return "sync"


@app.get("/endless")
async def endless():
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await anyio.sleep(0.001)
        finally:
            note("stream closed")

    return StreamingResponse(parts())


async def opened():
    try:
        yield "dependency"
    finally:
        note("dependency closed")


@app.get("/dependency")
async def dependency(one: str = Depends(opened)):
    return one
