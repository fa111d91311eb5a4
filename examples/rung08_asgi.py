"""08 · ASGI: scope, receive, send.

Read first:  rung06_coroutine (Task, Event) and rung07_http (RequestParser, Connection).
New here:    the two halves meet. Bytes come through handlers; the app is a coroutine in a task of
             its own. Between them stands a cycle: events are received as messages, messages that
             are sent become bytes. receive() parks while there is nothing, send() while the client
             does not read; nobody else waits. Try /slow again.
Still wrong: an upload that the app does not receive is kept in memory, all of it. HEAD is answered
             with a body. A client that wants a WebSocket is answered like any other.

    APP=examples.hello:app python -m examples.rung08_asgi 8000       or without APP; any app will do
"""

import importlib
import os
import sys
import traceback
import urllib.parse

from .rung05_deadlines import Reactor, Server
from .rung06_coroutine import Event, Task, sleep
from .rung07_http import NEED_DATA, Connection, Data, Request, response


class Cycle:
    """One request and its response, as the app sees them."""

    gone = {"type": "http.disconnect"}

    def __init__(self, connection, request):
        self.connection, self.transport = connection, connection.transport
        self.request = request
        self.messages = []  # to be received by the app
        self.put = self.messages.append
        self.state = "start"  # of the response; then "body", then "done"
        Task(connection.reactor, self.run())

    async def run(self):
        try:
            await self.connection.server.app(self.scope(), self.receive, self.send)
        except Exception:
            if self.transport.state != "closed":  # else it is only the OSError out of send()
                traceback.print_exc()
        if self.state == "start":
            self.transport.write(response(500, b"the app gave no answer\n", "close"))
        if self.state != "done":
            self.transport.close()

    def scope(self):
        path, _, query = self.request.target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.request.method,
            "path": urllib.parse.unquote(path),
            "query_string": query.encode(),
            "headers": self.request.headers,
        }

    async def receive(self):
        while not self.messages:
            if self.state == "done" or self.transport.state == "closed":
                return dict(self.gone)
            await self.connection.changed.wait()
        return self.messages.pop(0)

    async def send(self, message):
        if self.state == "done" or self.transport.state == "closed":
            raise OSError("nobody is listening any more")
        if message["type"] == "http.response.start":
            self.write_head(message["status"], list(message.get("headers", ())))
        else:
            self.write_body(message.get("body", b""), message.get("more_body", False))
        while self.transport.paused and self.transport.state != "closed":
            await self.connection.changed.wait()

    def write_head(self, status, headers):
        self.state = "body"
        self.chunked = all(name.lower() != b"content-length" for name, _ in headers)
        if self.chunked:  # the app does not say how long the body is
            headers.append((b"transfer-encoding", b"chunked"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%b\r\n" % (status, lines))

    def write_body(self, data, more):
        if self.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            data += b"" if more else b"0\r\n\r\n"
        self.transport.write(data)
        if not more:
            self.state = "done"
            self.connection.cycle_done()


class ASGIConnection(Connection):
    """Where bytes meet coroutines: one request at a time, in order."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.cycle = None  # the request in flight
        self.changed = Event()  # what a parked receive() or send() has to look at again

    def on_event(self, event):
        if isinstance(event, Request):
            self.cycle = Cycle(self, event)
        elif isinstance(event, Data):
            self.cycle.put({"type": "http.request", "body": event.data, "more_body": True})
        else:
            self.cycle.put({"type": "http.request", "body": b"", "more_body": False})
            self.parser.next_event = lambda: NEED_DATA  # the next request has to wait for its turn
        self.changed.set()

    def cycle_done(self):
        self.cycle = None
        if self.parser.next_event == self.parser.read_body:
            return self.transport.close()  # the app did not want the rest, nor do we
        self.parser.next_event = self.parser.read_head
        self.reactor.ready.append(self.advance)

    def on_deadline(self):
        if self.cycle:  # the client is waiting for us, and not we for it
            self.move_deadline()
        super().on_deadline()

    def resume_writing(self):
        super().resume_writing()
        self.changed.set()

    def connection_lost(self):
        super().connection_lost()
        self.changed.set()


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await sleep(1)  # nobody else waits
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"Here you are.\n"})


def serve(connection_class, app):
    module, _, name = os.environ.get("APP", "").partition(":")  # without it, the rung's own app
    server = Server(Reactor(), connection_class, *sys.argv[:0:-1])
    server.app = getattr(importlib.import_module(module), name) if module else app
    server.run()


if __name__ == "__main__":
    serve(ASGIConnection, app)
