"""BlackSheep."""

import asyncio

from blacksheep import Application, Request, Response, StreamedContent, WebSocket, text
from blacksheep.server.responses import file as file_response
from blacksheep.server.websocket import WebSocketDisconnectError

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note

app = Application()
STATE = {}


@app.on_start
async def startup(application):
    note("startup")
    STATE["made"] = "at startup"


@app.on_stop
async def shutdown(application):
    note("shutdown")


async def add_header(request, handler):
    response = await handler(request)
    response.headers.add(b"x-middleware", b"here")
    return response


app.middlewares.append(add_header)


@app.router.get("/async")
async def asynchronous():
    await asyncio.sleep(0)
    return text("async")


@app.router.get("/sync")
def synchronous():
    return text("sync")


@app.router.get("/stream")
async def stream():
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return Response(200, content=StreamedContent(b"text/plain", parts))


@app.router.post("/read-stream")
async def read_stream(request: Request):
    size = await measured(request.stream())
    return text(str(size))


@app.router.get("/file")
async def file():
    return file_response(FILE, "text/x-python")


@app.router.post("/form")
async def form(request: Request):
    return text((await request.form())["name"])


@app.router.post("/upload")
async def upload(request: Request):
    files = await request.files("file")
    name = files[0].file_name
    data = files[0].data
    name = name.decode() if isinstance(name, bytes) else name
    return text(f"{name} {len(data)}")


@app.router.get("/state")
async def state():
    return text(STATE["made"])


@app.router.get("/error")
async def error():
    raise ValueError("of the app")


@app.router.get("/endless")
async def endless():
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return Response(200, content=StreamedContent(b"text/plain", parts))


@app.router.get("/idle")
async def idle():
    return Response(200, content=StreamedContent(b"text/plain", idle_parts))


@app.router.get("/error-late")
async def error_late():
    return Response(200, content=StreamedContent(b"text/plain", failing_parts))


@app.router.ws("/ws")
async def socket(websocket: WebSocket):
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    try:
        while True:
            words = await websocket.receive_text()
            if words == "close":
                await websocket.close(4001, "as asked")
                return
            if words == "fail":
                raise ValueError("of the app")
            await websocket.send_text(words.upper())
    except WebSocketDisconnectError as exc:
        note("websocket closed", exc.code)


@app.router.ws("/ws-refused")
async def refused(websocket: WebSocket):
    await websocket.close()
