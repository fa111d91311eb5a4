"""Django, with Channels for its WebSockets."""

from __future__ import annotations

import asyncio

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

from . import CHUNKS, FILE, failing_parts, idle_parts, note

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests",
    MIDDLEWARE=[
        f"{__name__}.async_middleware",
        f"{__name__}.sync_middleware",
        "django.middleware.common.CommonMiddleware",
    ],
)
django.setup()


def async_middleware(get_response):
    async def add_header(request):
        response = await get_response(request)
        response["x-middleware"] = "here"
        return response

    import asgiref.sync

    asgiref.sync.markcoroutinefunction(add_header)
    return add_header


async_middleware.async_capable = True
async_middleware.sync_capable = False


def sync_middleware(get_response):
    """Only for threads: what is below it, sync_to_async has to carry."""

    def add_header(request):
        response = get_response(request)
        response["x-sync-middleware"] = "here"
        return response

    return add_header


def text(words):
    return HttpResponse(words, content_type="text/plain")


async def asynchronous(request):
    await asyncio.sleep(0)
    return text("async")


def synchronous(request):
    return text("sync")


async def stream(request):
    async def parts():
        for part in CHUNKS:
            yield part
            await asyncio.sleep(0)

    return StreamingHttpResponse(parts(), content_type="text/plain")


def sync_stream(request):
    return StreamingHttpResponse(iter(CHUNKS), content_type="text/plain")


def read_stream(request):
    size = 0
    while True:
        part = request.read(65536)
        if not part:
            return text(str(size))
        size += len(part)


def file(request):
    return FileResponse(open(FILE, "rb"))


def form(request):
    return text(request.POST["name"])


def upload(request):
    file = request.FILES["file"]
    return text(f"{file.name} {len(file.read())}")


async def error(request):
    raise ValueError("of the app")


async def echo(request, rest):
    return text(repr((request.path, request.META["QUERY_STRING"], request.method)))


async def endless(request):
    async def parts():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            note("stream closed")

    return StreamingHttpResponse(parts())


async def idle(request):
    return StreamingHttpResponse(idle_parts())


async def error_late(request):
    return StreamingHttpResponse(failing_parts())


async def wait_for_client(request):
    note("waiting")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note("client left")
        raise


urlpatterns = [
    path("async", asynchronous),
    path("sync", synchronous),
    path("stream", stream),
    path("sync-stream", sync_stream),
    path("read-stream", read_stream),
    path("file", file),
    path("form", form),
    path("upload", upload),
    path("error", error),
    path("echo/<path:rest>", echo),
    path("endless", endless),
    path("error-late", error_late),
    path("idle", idle),
    path("wait-for-client", wait_for_client),
]


class Socket(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept(next(iter(self.scope["subprotocols"]), None))

    async def receive(self, text_data=None, bytes_data=None):
        if text_data == "close":
            await self.close(4001, "as asked")
        elif text_data == "fail":
            raise ValueError("of the app")
        else:
            await self.send(text_data.upper())

    async def disconnect(self, code):
        note("websocket closed", code)


class Refused(AsyncWebsocketConsumer):
    async def connect(self):
        await self.close()


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter(
            [path("ws", Socket.as_asgi()), path("ws-refused", Refused.as_asgi())]
        ),
    }
)
