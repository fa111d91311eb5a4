"""What a server weighs: start-up to the first answer, memory after load, memory per idle
connection."""

from __future__ import annotations

from dataclasses import dataclass

from .client import GET, Connection
from .commands import Order
from .environment import Cores, allow_open_files
from .load import http_load
from .servers import Server, serving
from .websocket_load import open_websocket
from .workloads import ASGI, ECHO, HELLO, SOCKETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Footprint:
    """One row of the table of weights: less is better."""

    name: str
    title: str
    unit: str
    app: str
    servers: tuple[str, ...]
    weigh: Callable[[Server], float]
    aim: str = "0.5"


def first_answer(server: Server) -> float:
    """Return milliseconds from exec to the first 200."""
    return server.seconds_to_answer * 1e3


def memory_after_load(server: Server) -> float:
    """Return MB resident after a second or two of hello over 64 connections."""
    http_load(f"http://127.0.0.1:{server.port}/", 64, 2)
    return server.resident() / 1e6


def idle_connections(server: Server, count: int = 2000) -> float:
    """Return KB per kept connection that has been answered once, after warming up with load."""
    count = min(count, allow_open_files(count + 100) - 100)
    http_load(f"http://127.0.0.1:{server.port}/", 64, 1)
    server.settle()
    before = server.resident()
    connections = []
    try:
        for _ in range(count):
            connection = Connection(server.port)
            connections.append(connection)
            connection.exchange(GET)
        server.settle()
        return (server.resident() - before) / count / 1e3
    finally:
        for connection in connections:
            connection.close()


def idle_websockets(server: Server, count: int = 1000) -> float:
    """Return KB per WebSocket that is open and silent, after 50 others have come and gone."""
    count = min(count, allow_open_files(count + 100) - 100)
    for _ in range(50):
        open_websocket(server.port).close()
    server.settle()
    before = server.resident()
    sockets = []
    try:
        sockets += [open_websocket(server.port) for _ in range(count)]
        server.settle()
        return (server.resident() - before) / count / 1e3
    finally:
        for connection in sockets:
            connection.close()


FOOTPRINTS = (
    Footprint("startup", "start-up to first answer", "ms", HELLO, (*ASGI, "floor"), first_answer),
    Footprint("memory", "resident after load", "MB", HELLO, (*ASGI, "floor"), memory_after_load),
    Footprint("idle", "per idle kept connection", "KB", HELLO, (*ASGI, "floor"), idle_connections),
    Footprint("idle-ws", "per idle WebSocket", "KB", ECHO, SOCKETS, idle_websockets),
)


def weigh(footprint: Footprint, name: str, python: str, cores: Cores) -> float:
    """Start the server, weigh it, stop it."""
    with serving(name, Order(footprint.app), python, cores) as server:
        return footprint.weigh(server)
