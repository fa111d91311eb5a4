"""Libraries that want asyncio, inside an app: HTTP and WebSocket clients, a database, anyio."""

from __future__ import annotations

import contextlib

import aiohttp
import anyio
import anyio.to_process
import anyio.to_thread
import httpx
import sniffio
import websockets
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import create_async_engine
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from . import note

words = Table("words", MetaData(), Column("id", Integer, primary_key=True), Column("w", String))


@contextlib.asynccontextmanager
async def lifespan(app):
    """Hold what a real app holds for its whole life: clients with pools, and an engine."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(words.metadata.create_all)
    async with httpx.AsyncClient() as client, aiohttp.ClientSession() as session:
        yield {"engine": engine, "client": client, "session": session}
    await engine.dispose()
    note("closed all")


def own(request, path, scheme="http"):
    """Return the address of another route of this app."""
    host, port = request.scope["server"]
    return f"{scheme}://{host}:{port}{path}"


async def plain(request):
    return PlainTextResponse("plain " + (await request.body()).decode())


async def use_httpx(request):
    """Ask ourselves, while the asking request waits."""
    answers = []
    for number in range(3):
        answer = await request.state.client.post(own(request, "/plain"), content=str(number))
        answers.append(answer.text)
    return JSONResponse(answers)


async def use_aiohttp(request):
    answers = []
    for number in range(3):
        async with request.state.session.post(own(request, "/plain"), data=str(number)) as answer:
            answers.append(await answer.text())
    return JSONResponse(answers)


async def use_websockets(request):
    async with websockets.connect(own(request, "/ws", "ws"), proxy=None) as socket:
        await socket.send("hello")
        return PlainTextResponse(await socket.recv())


async def use_sqlalchemy(request):
    async with request.state.engine.begin() as connection:
        await connection.execute(words.delete())
        await connection.execute(insert(words), [{"w": "one"}, {"w": "two"}])
    async with request.state.engine.connect() as connection:
        rows = (await connection.execute(select(words.c.w).order_by(words.c.id))).scalars().all()
    return JSONResponse(rows)


async def use_anyio(request):
    """What anyio sees, and its own tools."""
    send, receive = anyio.create_memory_object_stream(10)
    got = []

    async def take():
        async with receive:
            async for item in receive:
                got.append(item)

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        async with send:
            for number in range(3):
                await send.send(number)
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep(3600)
    process = await anyio.run_process(["echo", "from a process"])
    thread = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 0))
    four = await anyio.to_process.run_sync(abs, -4)
    return JSONResponse(
        [
            sniffio.current_async_library(),
            got,
            scope.cancelled_caught,
            process.stdout.decode(),
            thread,
            four,
        ]
    )


async def events(request):
    async def make():
        for number in range(3):
            yield {"data": str(number), "event": "count"}
            await anyio.sleep(0)

    return EventSourceResponse(make(), sep="\n")


async def endless_events(request):
    async def make():
        try:
            while True:
                yield {"data": "more"}
                await anyio.sleep(0.001)
        finally:
            note("events closed")

    return EventSourceResponse(make(), sep="\n")


async def shout(websocket):
    await websocket.accept()
    await websocket.send_text((await websocket.receive_text()).upper())
    await websocket.close()


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/plain", plain, methods=["POST"]),
        Route("/httpx", use_httpx),
        Route("/aiohttp", use_aiohttp),
        Route("/websockets", use_websockets),
        Route("/sqlalchemy", use_sqlalchemy),
        Route("/anyio", use_anyio),
        Route("/events", events),
        Route("/endless-events", endless_events),
        WebSocketRoute("/ws", shout),
    ],
)
