"""selectserve: an ASGI web server that is nothing but Python's standard library.

One idea, said at every height: **a handler never waits.** Whoever cannot go on says what it is
waiting for, and returns. The reactor, the transport, the parser (NEED_DATA), the task (a trap)
and ``send()`` under back-pressure are that same sentence.

The life of a request, by the names of those who live it:

    `reactor.Reactor.tick` waits; `listener.Listener.on_connect` accepts a client, and
    `arrival.Entrance.begin` gives it a `transport.Transport` and a `connection.HTTPConnection`.
    `transport.Transport.read` receives bytes; `connection.HTTPConnection.data_received` feeds
    them to `http1.RequestParser.receive_data`, and `http1.RequestParser.next_event` makes a
    `http1.Request` of them. `connection.HTTPConnection.start_cycle` builds the scope with
    `asgi.request_scope`, begins an `asgi.HTTPCycle` and has `task.NativeStepper.spawn` take the
    first step of the app's coroutine, which is the only one of most. One that cannot go on, in
    `asgi.HTTPCycle.receive` for the body or in `asgi.HTTPCycle.send` when the client does not
    read, becomes a `task.Task` parked on a `task.Waiter`; `task.Task.step` goes on with it. What
    it sends is framed by `response.ResponseWriter.send` and gathered by
    `transport.Transport.write`. With the last piece `connection.HTTPConnection.response_complete`
    makes ready for the next request; `transport.Transport.flush` sends all that was gathered, at
    once when the turn has little else to do, else at its end. (An app that imports asyncio has an
    `aio.AsyncioStepper` instead.)
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
