"""Quart."""

from __future__ import annotations

import asyncio

from quart import Quart, request, send_file, websocket

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note

app = Quart(__name__)
STATE = {}


@app.before_serving
async def startup():
    note("startup")
    STATE["made"] = "at startup"


@app.after_serving
async def shutdown():
    note("shutdown")


@app.after_request
async def add_header(response):
    response.headers["x-middleware"] = "here"
    return response


@app.get("/async")
async def asynchronous():
    await asyncio.sleep(0)
    return "async"


@app.get("/sync")
def synchronous():
    return "sync"


@app.get("/stream")
async def stream():
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return parts(), {"content-type": "text/plain"}


@app.post("/read-stream")
async def read_stream():
    size = await measured(request.body)
    return str(size)


@app.get("/background")
async def background():
    async def work():
        await asyncio.sleep(0.01)
        note("background done")

    app.add_background_task(work)
    return "answered"


@app.get("/file")
async def file():
    return await send_file(FILE)


@app.post("/form")
async def form():
    return (await request.form)["name"]


@app.post("/upload")
async def upload():
    file = (await request.files)["file"]
    return f"{file.filename} {len(file.read())}"


@app.get("/state")
async def state():
    return STATE["made"]


@app.get("/error")
async def error():
    raise ValueError("of the app")


@app.route("/echo/<path:rest>", methods=["GET", "POST"])
async def echo(rest):
    return repr((request.path, request.query_string, request.method))


@app.get("/endless")
async def endless():
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return parts()


@app.get("/idle")
async def idle():
    return idle_parts()


@app.get("/error-late")
async def error_late():
    return failing_parts()


@app.websocket("/ws")
async def socket():
    await websocket.accept(subprotocol=next(iter(websocket.requested_subprotocols), None))
    try:
        while True:
            text = await websocket.receive()
            if text == "close":
                await websocket.close(4001, "as asked")
                return
            if text == "fail":
                raise ValueError("of the app")
            await websocket.send(text.upper())
    except asyncio.CancelledError:
        note("websocket closed")
        raise


@app.websocket("/ws-refused")
async def refused():
    return "no", 403
