"""upgrade: the life of a connection after it became a WebSocket: frames, messages, session.

HTTPConnection hands over the Request event and the bytes that followed it; nothing is serialised
again to be parsed again. From then on this is the transport's protocol: it feeds the machine,
puts its messages into the session, and writes what either has to say, once a turn.

    session: connecting (the app decides) -> open -> closed, or denying with an HTTP response;
    what is on the wire: WEBSOCKET_LIFECYCLE
"""

from __future__ import annotations

import logging

from .access import Exchange, asked_for
from .asgi import client_name, request_scope, with_request_id
from .errors import Cancelled
from .handshake import accept_head, read_handshake
from .http1 import NEED_DATA
from .logs import error_logger, log_app_error
from .reactor import NEVER, Deadline
from .response import ResponseWriter, plain_answer
from .session import WebSocketSession
from .transport import LARGE_READ, READ_SIZE
from .websocket import Binary, Close, Text, WebSocket, encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from .asgi import Message
    from .http1 import Request
    from .service import Service
    from .trace import Tells
    from .transport import Transport
    from .websocket import WebSocketEvent

    AwaitedFrame = Literal["app", "data", "pong", "close"]

HOLD_TIME = 1.0  # seconds for the app to answer what came before a close or a broken frame
CLOSE_TIMEOUT = 10.0  # seconds for the client's half of the closing handshake
FRAMES_READ = 131072  # at a time while frames are large: 64 KiB and its header in one go
EARLY_WATERMARK = 65536  # bytes of frames kept until the app has accepted


class WebSocketConnection:
    """The protocol of one WebSocket.

    Raises ProtocolError when constructed with a request that is no valid handshake.
    """

    __slots__ = (
        "awaited",
        "client",
        "deadline",
        "early",
        "full",
        "handshake",
        "held",
        "machine",
        "request_id",
        "service",
        "session",
        "transport",
        "writer",
    )

    def __init__(
        self, service: Service, transport: Transport, request: Request, rest: bytes
    ) -> None:
        self.handshake = read_handshake(request, deflate=service.ws_deflate)
        self.service = service
        self.transport = transport
        self.held: Close | None = None  # the end, which the app's last answers go before
        self.full = False  # the session holds as many messages as it may
        self.early = rest  # frames that came before the app accepted
        self.machine: WebSocket | None = None
        self.writer: ResponseWriter | None = None  # of an answer instead of a 101
        self.awaited: AwaitedFrame = "app"  # what the deadline is for
        self.deadline = Deadline(service.reactor, self.on_deadline)
        self.request_id = b"" if service.request_ids is None else service.request_ids.give(request)
        root_path, state = service.root_path, service.state
        scope = request_scope(request, transport, root_path, state, "websocket")
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if transport.secure else "ws"
        del scope["method"]
        scope["subprotocols"] = self.handshake.subprotocols
        if service.fields.forwarded and service.proxies is not None:
            service.proxies.apply(scope)
        self.client = scope["client"]
        self.session = WebSocketSession(self, service.stepper, request, scope)

    def __repr__(self) -> str:
        return f"<WebSocketConnection #{self.transport.number} {self.session.state}>"

    def start(self) -> None:
        """Take over the transport and call the app."""
        self.service.renew_date()
        service, session = self.service, self.session
        self.transport.protocol = self
        service.connections.add(self)
        service.cycles += 1
        service.requests += 1
        if service.requests == service.limit_max_requests and service.on_limit is not None:
            service.on_limit()
        if self.transport.trace:
            self.transport.trace("upgrade", self.transport, session.scope["path"])
        coro = service.app(session.scope, session.receive, session.send)
        session.task = service.stepper.spawn(coro, session.on_done, service.context.copy())

    # -- what the transport calls --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Frames have come, or a part of one; before the accept they are kept."""
        memory = self.service.memory
        if memory is not None:
            memory.note(len(data))
        if self.machine is None:
            self.early += data
            if len(self.early) > EARLY_WATERMARK:
                self.transport.pause_reading()
            return
        if self.awaited != "close":
            self.wait_for("data", self.service.ws_ping_interval)  # any byte is a sign of life
        left = self.machine.left  # of the frame that this goes on with
        if len(data) >= READ_SIZE:
            self.transport.read_size = LARGE_READ if left > LARGE_READ else FRAMES_READ
        elif not left:  # this is not the end of a large frame, behind which comes another
            self.transport.read_size = READ_SIZE
        self.machine.receive_data(data)
        self.pump()

    def eof_received(self) -> None:
        """The client ended its side; a WebSocket has no half-closed state."""
        if self.machine is not None:
            self.machine.receive_eof()
            self.pump()
        self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed: tell the app, release everything."""
        self.deadline.close()
        if self.held is not None:
            self.session.disconnect(self.held.code, self.held.reason)
        self.session.disconnect(1006, "")
        self.service.connections.discard(self)
        if self.service.on_change is not None:
            self.service.on_change()

    def pause_writing(self) -> None:
        """The client does not read: neither do we, or its pings would pile up as our pongs."""
        self.transport.pause_reading()
        memory = self.service.memory
        if memory is not None:
            memory.note(self.transport.out_size)

    def resume_writing(self) -> None:
        """There is room again."""
        self.session.release_waiters()
        if self.held is None:  # else the end is for receive to ask for
            self.messages_wanted()

    # -- frames to messages --------------------------------------------------------------------

    def pump(self) -> None:
        """Put what the machine has understood into the session, as much as it may hold."""
        machine, session = self.machine, self.session
        if machine is None or self.held is not None:
            return
        trace = self.transport.trace
        inbox, most = session.inbox, self.service.ws_max_queue
        self.full = False
        while True:
            if len(inbox) >= most and session.state != "closed":
                self.full = True  # what else has come stays in the machine, and in the kernel
                self.transport.pause_reading()
                break
            event = self.trace_event(machine, trace) if trace else machine.next_event()
            if event is NEED_DATA:
                break
            if type(event) is Text:
                session.put(event.text, None)
            elif type(event) is Binary:
                session.put(None, event.data)
            elif type(event) is Close:
                if inbox and session.state == "open" and event.code != 1006:
                    self.hold(event)
                else:
                    self.end(event)
                return
        self.write_out()

    def trace_event(self, machine: WebSocket, trace: Tells) -> WebSocketEvent:
        """Ask the machine, and tell."""
        before = machine.read.__name__
        event = machine.next_event()
        trace("event", self.transport, event, f"({before} -> {machine.read.__name__})")
        return event

    def hold(self, close: Close) -> None:
        """Let the app answer what came before the close, or a broken frame; then ours goes out."""
        self.held = close
        self.transport.pause_reading()
        self.wait_for("close", HOLD_TIME)

    def messages_wanted(self) -> None:
        """The app takes messages: read on, once there is room for half a queue of them."""
        if self.held is not None:
            if not self.session.inbox:
                self.end(self.held)
        elif self.full or not self.transport.reading:
            if len(self.session.inbox) * 2 <= self.service.ws_max_queue and not self.must_wait():
                self.transport.resume_reading()
                self.pump()

    def must_wait(self) -> bool:
        """Tell whether the client has too much to read already."""
        return self.transport.writing_paused

    def write_out(self) -> None:
        """Write what the machine has to say."""
        if self.machine is not None:
            pieces = self.machine.data_to_send()
            if pieces:
                self.transport.write(pieces)

    def end(self, close: Close) -> None:
        """The client has closed, or broken the protocol, or was lost."""
        if close.failure:
            self.service.complaints.log(
                logging.WARNING, f"{self.transport.peer_name}: {close.code} {close.failure}"
            )
        self.session.disconnect(close.code, close.reason)
        self.write_out()
        self.finish(bool(close.failure))

    def finish(self, unread: bool = False) -> None:
        """Close the transport once all is sent."""
        self.awaited = "close"
        self.deadline.set(NEVER)
        if unread:
            self.transport.linger()
        else:
            self.transport.close()

    # -- what the session calls ----------------------------------------------------------------

    def accept(self, message: Message) -> None:
        """Answer 101, and read the frames that came with the handshake."""
        defaults = self.service.defaults
        head = accept_head(
            self.handshake,
            message.get("subprotocol"),
            self.identified(message.get("headers", ())),
            defaults.server + defaults.date,
        )
        service = self.service
        self.machine = WebSocket(max_size=service.ws_max_size, deflate=self.handshake.deflate)
        self.transport.write([head])
        self.log(101)
        self.wait_for("data", service.ws_ping_interval)
        early, self.early = self.early, b""
        if early:
            self.machine.receive_data(early)
            # not at once: the app is being stepped, and has not seen its accept return
            service.reactor.call_soon(self.pump)
        self.transport.resume_reading()

    def forbid(self) -> None:
        """Answer 403: the app closed before it accepted."""
        self.refuse(403, "Forbidden")

    def identified(self, headers: Any) -> Any:
        """Return ``headers`` with the request's id among them, when requests have one."""
        return with_request_id(headers, self.request_id) if self.request_id else headers

    def refuse(self, status: int, text: str) -> None:
        """Answer the handshake with an error of our own."""
        self.service.renew_date()
        headers = [(b"x-request-id", self.request_id)] if self.request_id else []
        self.transport.write([plain_answer(status, text, self.service.defaults, False, headers)])
        self.log(status)
        self.finish(True)

    def deny(self, message: Message) -> None:
        """Begin the app's own answer to the handshake."""
        writer = ResponseWriter(self.service.defaults, self.service.lines)
        writer.begin("GET", "1.1", keep_alive=False)
        if "status" not in message:
            raise TypeError("websocket.http.response.start needs a status")
        writer.start(message["status"], self.identified(message.get("headers", ())))
        self.writer = writer

    def deny_body(self, message: Message) -> bool:
        """Write a piece of that answer; True when it was the last."""
        assert self.writer is not None
        more, body = bool(message.get("more_body", False)), message.get("body", b"")
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise TypeError(f"websocket.http.response.body: 'body' must be bytes, not {body!r:.40}")
        self.transport.write(self.writer.send(bytes(body), more))
        if not more:
            self.log(self.writer.status)
            self.finish(True)
        return not more

    def send_message(self, text: str | None, data: bytes | None) -> None:
        """Send a message of the app's."""
        machine = self.machine
        assert machine is not None
        if self.held is not None:  # the machine has ended, and its close frame comes behind this
            first, payload = (0x82, data or b"") if text is None else (0x81, text.encode())
            self.transport.write(list(encode_frame(first, payload)))
            return
        if text is not None:
            machine.send_text(text)
        elif data is not None:
            machine.send_binary(data)
        self.transport.write(machine.data_to_send())

    def send_close(self, code: int, reason: str) -> None:
        """Send a close frame, and give the client a moment to answer it."""
        assert self.machine is not None
        if self.held is not None:
            self.end(self.held)
            return
        self.machine.send_close(code, reason)
        self.write_out()
        self.wait_for("close", CLOSE_TIMEOUT)
        self.transport.resume_reading()

    def session_done(self, session: WebSocketSession, exc: BaseException | None) -> None:
        """The app has returned or raised: end what it left open."""
        service = self.service
        service.cycles -= 1
        if service.on_change is not None:
            service.on_change(exc)
        if exc is not None:
            service.heed(exc)
            hint = session.stepper.explain(exc)
            log_app_error(exc, asked_for(session.request, "WebSocket"), hint)
        if session.state == "open":
            if isinstance(exc, Cancelled):
                self.close_with(1012 if service.draining else 1000)
            else:
                self.close_with(1000 if exc is None else 1011)
        elif session.state in ("connecting", "denying"):
            if self.writer is not None and self.writer.framing != "held":
                self.transport.abort()  # a clean end could look like a complete answer
            else:
                if exc is None:
                    asked = asked_for(session.request, "WebSocket")
                    error_logger.error("the app returned without an answer: %s", asked)
                self.refuse(500, "Internal Server Error")
                session.disconnect(1006, "")

    def close_with(self, code: int) -> None:
        """Close from the server's side."""
        if self.session.state == "open":
            self.send_close(code, "")
            self.session.disconnect(code, "", gone=True)

    # -- time and the end ----------------------------------------------------------------------

    def wait_for(self, awaited: AwaitedFrame, timeout: float) -> None:
        """Hold the one deadline, for ``awaited``; a timeout of 0 is none."""
        self.awaited = awaited
        self.deadline.set(self.service.reactor.now + timeout if timeout else NEVER)

    def on_deadline(self) -> None:
        """Silence: ask for a sign of life, or give up."""
        machine = self.machine
        if self.held is not None and self.transport.state == "open":
            self.end(self.held)
        elif machine is None or self.awaited == "close":
            self.transport.abort()
        elif not self.transport.reading:  # it is we who do not listen
            self.wait_for("data", self.service.ws_ping_interval)
        elif self.awaited == "data":
            machine.send_ping()
            self.write_out()
            timeout = self.service.ws_ping_timeout  # 0: nobody waits, but we keep asking
            self.wait_for("pong" if timeout else "data", timeout or self.service.ws_ping_interval)
        else:
            self.service.complaints.log(
                logging.INFO,
                f"{self.transport.peer_name}: 1011, no byte for "
                f"{self.service.ws_ping_timeout:g} s after a ping",
            )
            self.close_with(1011)
            self.finish(True)

    def held_bytes(self) -> int:
        """Count the bytes in our buffers."""
        held = len(self.early) + self.transport.out_size + self.session.held_bytes()
        return held if self.machine is None else held + self.machine.buffered

    def close_if_idle(self, gently: bool) -> None:
        """At shutdown no WebSocket is idle: it goes on until it is told."""

    def tell_end(self, everybody: bool) -> None:
        """Half of the drain is over: 1012 tells the client to come again (RFC 6455 §7.4).

        At its end, ``everybody``, an app that has not answered the handshake is told, too, and no
        client has time left to answer our close.
        """
        if everybody and self.session.state == "connecting":
            self.session.disconnect(1012, "")
            self.refuse(503, "Service Unavailable")
        else:
            self.close_with(1012)
            if everybody and self.machine is not None:
                self.finish(True)

    def log(self, status: int) -> None:
        """Write the access line of the handshake."""
        access_log, request = self.service.access_log, self.session.request
        if access_log is None:
            return
        if access_log.form is not None:
            access_log.write(access_log.form.line(Exchange(request, self.client, status)))
            return
        target = request.target.decode("latin-1")
        access_log.write(f'{client_name(self.client)} - "WebSocket {target}" {status}')
