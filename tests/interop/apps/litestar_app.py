"""Litestar."""

import asyncio
import contextlib
from typing import Annotated, Any

from litestar import Litestar, Request, WebSocket, get, post, route, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State, UploadFile
from litestar.di import Provide
from litestar.enums import RequestEncodingType
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Body
from litestar.response import File, Response, Stream

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note

TEXT = "text/plain"


@contextlib.asynccontextmanager
async def lifespan(app):
    note("startup")
    app.state.made = "at startup"
    yield
    note("shutdown")


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


async def add_header(response: Response) -> Response:
    response.headers["x-middleware"] = "here"
    return response


@get("/async", media_type=TEXT)
async def asynchronous() -> str:
    await asyncio.sleep(0)
    return "async"


@get("/sync", media_type=TEXT, sync_to_thread=True)
def synchronous() -> str:
    return "sync"


@get(
    "/dependency",
    media_type=TEXT,
    dependencies={"one": Provide(opened), "other": Provide(opened_in_thread)},
)
async def dependency(one: Any, other: Any) -> str:
    return f"{one}, {other}"


@get("/stream")
async def stream() -> Stream:
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return Stream(parts(), media_type=TEXT)


@post("/read-stream", media_type=TEXT, status_code=200)
async def read_stream(request: Request) -> str:
    size = await measured(request.stream())
    return str(size)


@get("/background")
async def background() -> Response[str]:
    async def work():
        await asyncio.sleep(0.01)
        note("background done")

    return Response("answered", media_type=TEXT, background=BackgroundTask(work))


@get("/file")
async def file() -> File:
    return File(FILE)


@post("/form", media_type=TEXT, status_code=200)
async def form(
    data: Annotated[dict[str, str], Body(media_type=RequestEncodingType.URL_ENCODED)],
) -> str:
    return data["name"]


@post("/upload", media_type=TEXT, status_code=200)
async def upload(
    data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)],
) -> str:
    return f"{data['file'].filename} {len(await data['file'].read())}"


@get("/state", media_type=TEXT)
async def state(state: State) -> str:
    return state.made


@get("/error")
async def error() -> None:
    raise ValueError("of the app")


@route("/echo/{rest:path}", http_method=["GET", "POST"], media_type=TEXT, status_code=200)
async def echo(request: Request, rest: str) -> str:
    return repr((request.url.path, request.url.query, request.method))


@get("/endless")
async def endless() -> Stream:
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return Stream(parts())


@get("/idle")
async def idle() -> Stream:
    return Stream(idle_parts())


@get("/error-late")
async def error_late() -> Stream:
    return Stream(failing_parts())


@websocket("/ws")
async def socket(socket: WebSocket) -> None:
    await socket.accept(subprotocols=next(iter(socket.scope["subprotocols"]), None))
    try:
        while True:
            text = await socket.receive_text()
            if text == "close":
                await socket.close(4001, "as asked")
                return
            if text == "fail":
                raise ValueError("of the app")
            await socket.send_text(text.upper())
    except WebSocketDisconnect as exc:
        note("websocket closed", exc.code)


@websocket("/ws-refused")
async def refused(socket: WebSocket) -> None:
    await socket.close()


app = Litestar(
    [
        asynchronous,
        synchronous,
        dependency,
        stream,
        read_stream,
        background,
        file,
        form,
        upload,
        state,
        error,
        echo,
        endless,
        error_late,
        idle,
        socket,
        refused,
    ],
    lifespan=[lifespan],
    after_request=add_header,
    openapi_config=None,
)
