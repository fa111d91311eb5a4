"""Falcon."""

from __future__ import annotations

import asyncio

import falcon.asgi
from falcon import WebSocketDisconnected

from . import CHUNKS, FILE, failing_parts, idle_parts, measured, note

STATE = {}


class Middleware:
    async def process_startup(self, scope, event):
        note("startup")
        STATE["made"] = "at startup"

    async def process_shutdown(self, scope, event):
        note("shutdown")

    async def process_response(self, request, response, resource, succeeded):
        response.set_header("x-middleware", "here")


def text(response, words):
    response.content_type = "text/plain"
    response.text = words


class Asynchronous:
    async def on_get(self, request, response):
        await asyncio.sleep(0)
        text(response, "async")


class Synchronous:
    async def on_get(self, request, response):
        text(response, await falcon.sync_to_async(lambda: "sync"))


class Stream:
    async def on_get(self, request, response):
        async def parts():
            for part in CHUNKS:
                yield part
                await asyncio.sleep(0)

        response.content_type = "text/plain"
        response.stream = parts()


class ReadStream:
    async def on_post(self, request, response):
        size = await measured(request.stream)
        text(response, str(size))


class Background:
    async def on_get(self, request, response):
        async def work():
            await asyncio.sleep(0.01)
            note("background done")

        response.schedule(work)
        text(response, "answered")


class File:
    async def on_get(self, request, response):
        with open(FILE, "rb") as file:
            response.data = file.read()
        response.content_type = "text/x-python"


class Form:
    async def on_post(self, request, response):
        text(response, (await request.get_media())["name"])


class Upload:
    async def on_post(self, request, response):
        async for part in await request.get_media():
            text(response, f"{part.filename} {len(await part.get_data())}")


class State:
    async def on_get(self, request, response):
        text(response, STATE["made"])


class Error:
    async def on_get(self, request, response):
        raise ValueError("of the app")


class Echo:
    async def on_get(self, request, response, rest):
        text(response, repr((request.path, request.query_string, request.method)))

    on_post = on_get


class Endless:
    async def on_get(self, request, response):
        async def parts():
            try:
                while True:
                    yield b"x" * 1000
                    await asyncio.sleep(0.001)
            finally:
                note("stream closed")

        response.stream = parts()


class Idle:
    async def on_get(self, request, response):
        response.stream = idle_parts()


class ErrorLate:
    async def on_get(self, request, response):
        response.stream = failing_parts()


class Socket:
    async def on_websocket(self, request, socket):
        await socket.accept(subprotocol=next(iter(socket.subprotocols), None))
        try:
            while True:
                words = await socket.receive_text()
                if words == "close":
                    await socket.close(4001, "as asked")
                    return
                if words == "fail":
                    raise ValueError("of the app")
                await socket.send_text(words.upper())
        except WebSocketDisconnected as exc:
            note("websocket closed", exc.code)


class Refused:
    async def on_websocket(self, request, socket):
        raise falcon.HTTPForbidden


app = falcon.asgi.App(middleware=[Middleware()])
for path, resource in {
    "/async": Asynchronous(),
    "/sync": Synchronous(),
    "/stream": Stream(),
    "/read-stream": ReadStream(),
    "/background": Background(),
    "/file": File(),
    "/form": Form(),
    "/upload": Upload(),
    "/state": State(),
    "/error": Error(),
    "/echo/{rest:path}": Echo(),
    "/endless": Endless(),
    "/error-late": ErrorLate(),
    "/idle": Idle(),
    "/ws": Socket(),
    "/ws-refused": Refused(),
}.items():
    app.add_route(path, resource)
