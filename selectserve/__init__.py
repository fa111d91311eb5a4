"""selectserve: an ASGI web server that is nothing but Python's standard library.

One idea, said at every height: **a handler never waits.** Whoever cannot go on says what it is
waiting for, and returns. The reactor, the transport, the parser (NEED_DATA), the task (a trap)
and ``send()`` under back-pressure are that same sentence.

The life of a request, by the names of those who live it:

    `reactor.Reactor.tick` waits; `listener.Listener.on_connect` accepts a client and
    `server.Server.accept` gives it a `transport.Transport` and a `connection.HTTPConnection`.
    `transport.Transport.read` receives bytes; `connection.HTTPConnection.data_received` feeds
    them to `http1.RequestParser.receive_data`, and `http1.RequestParser.next_event` makes a
    `http1.Request` of them. `connection.HTTPConnection.start_cycle` builds the scope with
    `asgi.request_scope`, begins an `asgi.HTTPCycle` and spawns the app as a `task.Task`.
    `task.Task.step` runs it until it ends or parks on a `task.Waiter`: in
    `asgi.HTTPCycle.receive` for the body, or in `asgi.HTTPCycle.send` when the client does not
    read. What it sends is framed by `response.ResponseWriter.send`, gathered by
    `transport.Transport.write` and leaves, once a turn, in `transport.Transport.flush`. Then
    `connection.HTTPConnection.response_complete` keeps the connection for the next request.
"""

from __future__ import annotations

from .config import Config
from .embed import by_hand, serving
from .errors import Cancelled, ClientDisconnected, ConfigError, ProtocolError
from .launch import run
from .reactor import Reactor
from .server import Server
from .task import Event, run_in_thread, sleep, spawn, wait_readable, wait_writable

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "ClientDisconnected",
    "Config",
    "ConfigError",
    "Event",
    "ProtocolError",
    "Reactor",
    "Server",
    "by_hand",
    "run",
    "run_in_thread",
    "serving",
    "sleep",
    "spawn",
    "wait_readable",
    "wait_writable",
]
