"""The workloads, as data: what is served, how it is asked, and what selectserve aims at."""

from __future__ import annotations

from dataclasses import dataclass, field

from .commands import OURS

ASGI = (OURS, "uvicorn", "uvicorn-h11", "granian", "hypercorn")
SOCKETS = (OURS, "uvicorn", "uvicorn-wsproto", "granian", "hypercorn")
WITH_FLOOR = (*ASGI, "floor")
KILOBYTE, MEGABYTE = 1024, 1024 * 1024


@dataclass(frozen=True)
class Workload:
    """One row of the table. The aim is a ratio to uvicorn[standard] (and one to granian)."""

    name: str
    title: str
    app: str  # in tests.bench
    aim: str
    answer: int  # the length of the right response body
    connections: int = 64
    kind: str = "plain"  # see load.http_load
    size: int = 0  # of the request body or WebSocket message; requests at once when pipelined
    path: str = "/"
    access_log: bool = False
    tls: bool = False
    file: bool = False
    in_flight: int = 0  # WebSocket messages per connection
    servers: tuple[str, ...] = ASGI
    app_of: dict[str, str] = field(default_factory=dict)


HELLO = "apps:hello"
ECHO = "apps:websocket_echo"
STARLETTE = "apps_starlette:"
FASTAPI = "apps_fastapi:app"
DJANGO = "apps_django:app"
FILE_RESPONSE = dict.fromkeys(("uvicorn", "uvicorn-h11", "hypercorn"), STARLETTE + "download")

# fmt: off
WORKLOADS = (
    Workload("hello", "hello, 64 connections", HELLO, "2.2 (1.8)", 13,
             servers=(*WITH_FLOOR, "pypy")),
    Workload("hello-1", "hello, 1 connection", HELLO, "1.3 (1.1)", 13, 1, servers=WITH_FLOOR),
    Workload("hello-1024", "hello, 1024 connections", HELLO, "2.2 (1.8)", 13, 1024,
             servers=WITH_FLOOR),
    Workload("browser", "13 browser headers", HELLO, "1.9 (1.4)", 13, kind="browser",
             servers=WITH_FLOOR),
    Workload("paths", "hello, each time another path", HELLO, "best", 13, kind="paths",
             servers=WITH_FLOOR),
    Workload("pipeline", "16 requests pipelined", HELLO, "3", 13, kind="pipeline", size=16),
    Workload("json", "JSON 2 KB, access log on", "apps:document", "2.5 (1.8)", 1978,
             access_log=True),
    Workload("echo", "POST echo 1 KB", "apps:echo", "2 (1.5)", KILOBYTE,
             kind="post", size=KILOBYTE),
    Workload("sink", "POST 1 MB", "apps:sink", "1.2, best", 7,
             kind="post", size=MEGABYTE),
    Workload("megabyte", "GET 1 MB", "apps:megabyte", "1.2, best", MEGABYTE),
    Workload("stream", "stream 64 × 16 KB", "apps:stream", "1.2, best", MEGABYTE),
    Workload("sse", "200 server-sent events", "apps:events", "1.2, best", 6690),
    Workload("tls", "hello over TLS", HELLO, "1.3", 13, tls=True),
    Workload("starlette", "Starlette hello", STARLETTE + "hello", "1.4", 13),
    Workload("fastapi", "FastAPI hello, async", FASTAPI, "1.2", 17),
    Workload("fastapi-sync", "FastAPI hello, sync", FASTAPI, "best", 17, path="/sync"),
    Workload("django", "Django hello, async", DJANGO, "1.05", 13),
    Workload("django-sync", "Django hello, sync", DJANGO, "best", 13, path="/sync"),
    Workload("chunks", "Starlette stream of 5 chunks", STARLETTE + "stream", "best", 5 * KILOBYTE),
    Workload("middleware", "the same behind BaseHTTPMiddleware", STARLETTE + "middleware_stream",
             "best", 5 * KILOBYTE),
    Workload("file", "10 MB file, pathsend (FileResponse where there is none)",
             "apps:download", "best", 10 * MEGABYTE, 16, path="/file", file=True,
             servers=(*ASGI, "nginx"), app_of=FILE_RESPONSE),
    Workload("file-response", "10 MB file, Starlette FileResponse", STARLETTE + "download", "best",
             10 * MEGABYTE, 16, path="/file", file=True),
    Workload("ws", "WebSocket echo 32 B, 1 in flight", ECHO, "best", 13, size=32, in_flight=1,
             servers=SOCKETS),
    Workload("ws-64", "WebSocket echo 32 B, 64 in flight", ECHO, "best", 13, 16, size=32,
             in_flight=64, servers=SOCKETS),
    Workload("ws-64k", "WebSocket echo 64 KiB, 1 in flight", ECHO, "best", 13, 16, size=65536,
             in_flight=1, servers=SOCKETS),
)
# fmt: on
