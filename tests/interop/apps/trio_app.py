"""An app for trio, bare ASGI; ``/starlette/…`` is Starlette's, which runs on anyio."""

from __future__ import annotations

import contextvars
import threading

import anyio
import sniffio
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from . import CHUNKS, note

SEEN = contextvars.ContextVar("SEEN", default="nothing")
APPS = {}


def route(function):
    """Serve ``function`` under its own name."""
    APPS[function.__name__] = function
    return function


async def app(scope, receive, send):
    """Call the app that the path names and answer with what it returns."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"].startswith("/starlette"):
        await starlette(scope, receive, send)
    else:
        body = repr(await APPS[scope["path"][1:]](receive)).encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})


async def lifespan(receive, send):
    """Hold a nursery open for as long as the server serves."""
    async with trio.open_nursery() as nursery:
        await receive()
        SEEN.set("by lifespan")
        nursery.start_soon(worker)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("lifespan shutdown")
        nursery.cancel_scope.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def worker():
    try:
        await trio.sleep_forever()
    finally:
        note("worker cancelled")


@route
async def library(receive):
    return sniffio.current_async_library(), type(trio.lowlevel.current_task()).__name__


@route
async def sleep(receive):
    began = trio.current_time()
    await trio.sleep(0.02)
    return trio.current_time() - began >= 0.02


@route
async def nursery(receive):
    """Channels and tasks."""
    send, take = trio.open_memory_channel(0)
    got = []

    async def produce():
        async with send:
            for number in range(3):
                await send.send(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in take:
            got.append(number)
    return got


@route
async def timeout(receive):
    with trio.move_on_after(0.01) as scope:
        await trio.sleep_forever()
    return scope.cancelled_caught


@route
async def threads(receive):
    return await trio.to_thread.run_sync(
        lambda: (SEEN.get(), trio.from_thread.run(trio.sleep, 0.001), "from a thread")
    )


@route
async def context(receive):
    seen = SEEN.get()
    SEEN.set("by request")
    await trio.sleep(0)
    return seen, SEEN.get()


@route
async def streams(receive):
    async def shout(stream):
        await stream.send_all((await stream.receive_some()).upper())

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, shout, 0)
        client = await trio.testing.open_stream_to_socket_listener(listeners[0])
        async with client:
            await client.send_all(b"hello")
            got = await client.receive_some()
        nursery.cancel_scope.cancel()
    return got


@route
async def process(receive):
    done = await trio.run_process(["cat"], stdin=b"hello", capture_stdout=True)
    return done.stdout


@route
async def primitives(receive):
    """selectserve's own primitives, among trio's."""
    import selectserve

    event = selectserve.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait)
            await selectserve.sleep(0.001)
            event.set()
    return await selectserve.run_in_thread(lambda: "from a thread")


@route
async def receive_timeout(receive):
    """A receive() that is given up leaves nothing behind."""
    with trio.move_on_after(0.02):
        await receive()
        return "too early"
    note("receive given up")
    return (await receive())["body"]


@route
async def disconnect(receive):
    await receive()
    note("waiting")
    note((await receive())["type"])


@route
async def hold(receive):
    note("holding")
    try:
        await trio.sleep_forever()
    finally:
        note("finally")


@route
async def thread_at_work(receive):
    def work():
        note("at work")
        threading.Event().wait()

    await trio.to_thread.run_sync(work)


@route
async def fail(receive):
    raise ValueError("of the app")


@route
async def fail_in_nursery(receive):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, receive)


@route
async def interrupt_in_nursery(receive):
    async def interrupt():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_in_nursery, receive)
            raise KeyboardInterrupt

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)


@route
async def system_exit(receive):
    raise SystemExit(7)


class AddHeader(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-middleware"] = "here"
        return response


async def asynchronous(request):
    await anyio.sleep(0)
    return PlainTextResponse("async")


def synchronous(request):
    return PlainTextResponse("sync")


async def stream(request):
    async def parts():
        for part in CHUNKS:
            yield part
            await anyio.sleep(0)

    return StreamingResponse(parts())


starlette = Starlette(
    middleware=[Middleware(AddHeader)],
    routes=[
        Mount(
            "/starlette",
            routes=[
                Route("/async", asynchronous),
                Route("/sync", synchronous),
                Route("/stream", stream),
            ],
        )
    ],
)
