"""connection: the whole life of a request, top to bottom: bytes, events, cycle, bytes.

With upgrade, the room where the wire meets the app. One request at a time:

    data_received -> parser -> read_request -> start_cycle -> (the app: receive, send)
        -> response_complete -> keep the connection, or close it

What a request breaks is answered here, in ``refuse``, and nowhere else. A connection holds one
deadline, for whatever it waits for now; while it waits for nothing but the app, none.
"""

from __future__ import annotations

from .access import CLIENT_LEFT, CUT_OFF, Exchange, asked_for, log_cycles, log_exchange
from .asgi import MAX_DISCARD, HTTPCycle, request_scope
from .errors import Cancelled, ProtocolError
from .handshake import wants_websocket
from .http1 import CLOSED, NEED_DATA, Data, EndOfMessage, Request, RequestParser
from .logs import error_logger, log_app_error, printable
from .reactor import EVENT_READ, NEVER, Deadline
from .response import ResponseWriter, plain_answer
from .transport import HIGH_WATERMARK, LARGE_READ, READ_SIZE
from .upgrade import WebSocketConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from .http1 import HTTPEvent
    from .service import Service
    from .trace import Tells
    from .transport import Transport

    Awaited = Literal["request", "head", "body", "app", "rest", "close"]


PIPELINE_WATERMARK = 65536  # bytes read ahead of the request in flight
PIPELINE_BURST = 8  # pipelined requests begun in one turn; they leave in one send
BODY_WATERMARK = LARGE_READ  # bytes of a body that the app has not received
BODY_PROGRESS = 1024  # bytes that count as progress of a slow body
LAST_WORDS = 1.0  # seconds in which, at shutdown, a client may read its last answer
ON_ITS_WAY = 0.25  # seconds in which, at shutdown, one more request may arrive


class HTTPConnection:
    """The protocol of one connection: requests in, responses out, in order."""

    __slots__ = (
        "awaited",
        "body_progress",
        "cycle",
        "deadline",
        "discarded",
        "parser",
        "planned",
        "service",
        "transport",
        "unlogged",
        "writer",
    )

    def __init__(self, service: Service, transport: Transport) -> None:
        self.service = service
        self.transport = transport
        self.parser = RequestParser(service.limits, service.fields)
        self.writer = ResponseWriter(service.defaults, service.lines)
        self.cycle: HTTPCycle | None = None  # the request in flight
        self.awaited: Awaited = "request"  # what the deadline is for
        self.planned = False  # the next request will be read in this turn or the next
        self.discarded = 0  # bytes read of a body that nobody wants
        self.unlogged: list[HTTPCycle] = []
        self.body_progress = 0
        self.deadline = Deadline(service.reactor, self.on_deadline)
        self.deadline.set(service.reactor.now + service.timeout_keep_alive)
        service.connections.add(self)

    def __repr__(self) -> str:
        return f"<HTTPConnection #{self.transport.number} waits for {self.awaited}>"

    # -- what the transport calls --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes have come: of the next request, of this one's body, or ahead of time."""
        self.parser.receive_data(data)
        memory = self.service.memory
        if memory is not None:
            memory.note(len(data) + HIGH_WATERMARK)  # as much as an answer may leave unsent
        cycle = self.cycle
        if cycle is None and not (self.planned or self.transport.writing_paused):
            self.read_request()
        elif cycle is not None and cycle.input == "open":
            self.read_body(cycle)
        elif self.parser.buffered > PIPELINE_WATERMARK:
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """The client will send nothing more; it may still be reading (RFC 9112 §9.6)."""
        self.parser.receive_eof()
        cycle = self.cycle
        if cycle is None:
            if not self.planned:
                self.read_request()
        elif cycle.input == "open":
            self.read_body(cycle)
        elif cycle.waits_for_client:
            cycle.on_disconnect()
        else:
            self.transport.probe()  # it may read on, or be gone altogether

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed: tell the app, release everything."""
        self.deadline.close()
        service = self.service
        service.connections.discard(self)
        if self.awaited == "close":
            service.parting -= 1
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.on_disconnect()
            self.unlogged.append(cycle)
        if self.unlogged:
            self.log_requests(CLIENT_LEFT if exc else CUT_OFF)
        if service.on_change is not None:
            service.on_change()

    def pause_writing(self) -> None:
        """The client does not read: the cycle sees it on the transport, in send()."""
        memory = self.service.memory
        if memory is not None:
            memory.note(self.transport.out_size)

    def resume_writing(self) -> None:
        """There is room again: send() goes on, or the next request."""
        if self.cycle is not None:
            self.cycle.release_waiters()
        else:
            self.read_on()

    # -- a request -----------------------------------------------------------------------------

    def read_burst(self) -> None:
        """Begin requests that are here already; a few a turn, for the others wait meanwhile."""
        for _ in range(PIPELINE_BURST):
            if not self.read_request() or self.transport.protocol is not self:  # an upgrade
                self.planned = False
                return
        self.planned = False
        if self.cycle is None:
            self.read_on()

    def read_request(self) -> bool:
        """Begin the next request, if its head is here; tell whether it was.

        Not while the client has too much to read already: a thousand pipelined requests would
        fill the write buffer with a thousand answers.
        """
        transport = self.transport
        if self.cycle is not None or transport.state != "open" or transport.writing_paused:
            return False
        event = self.next_event()
        if type(event) is Request and transport.reading:  # the usual case
            self.start_cycle(event)
            return True
        while type(event) is Data or type(event) is EndOfMessage:  # of a body nobody read
            if type(event) is Data:
                self.discarded += len(event.data)
            else:
                self.wait_for("request", self.service.timeout_keep_alive)
            if self.discarded > MAX_DISCARD:
                self.finish(True)
                return False
            event = self.next_event()
        if type(event) is Request:
            self.start_cycle(event)
        elif event is NEED_DATA:
            if self.parser.buffered and self.awaited == "request":
                self.wait_for("head", self.service.timeout_header)
        elif event is CLOSED:
            self.transport.close()
        if not transport.reading and not self.parser.eof and self.has_room(event):
            transport.resume_reading()
        return type(event) is Request

    def has_room(self, event: HTTPEvent | None) -> bool:
        """Tell whether more should be read after ``event``, the last one of the parser."""
        cycle = self.cycle
        if cycle is None:
            return event is NEED_DATA  # else response_complete has seen to it
        if cycle.input == "open":
            return cycle.pieces_size <= BODY_WATERMARK
        return self.parser.buffered <= PIPELINE_WATERMARK

    def next_event(self) -> HTTPEvent | None:
        """Ask the parser; None when it failed and the failure was answered."""
        if self.transport.trace:
            return self.trace_event(self.transport.trace)
        try:
            return self.parser.next_event()
        except ProtocolError as exc:
            self.refuse(exc)
            return None

    def trace_event(self, trace: Tells) -> HTTPEvent | None:
        """The same, narrated."""
        before = self.parser.state
        try:
            event = self.parser.next_event()
        except ProtocolError as exc:
            trace("event", self.transport, repr(exc), f"({before})")
            self.refuse(exc)
            return None
        trace("event", self.transport, event, f"({before} -> {self.parser.state})")
        return event

    def start_cycle(self, request: Request) -> None:
        """Give the request to the app as a task of its own."""
        service = self.service
        transport = self.transport
        reactor = service.reactor
        if reactor.now >= service.date_until:
            service.renew_date()
        if (service.limit_concurrency or service.memory is not None) and self.is_too_many():
            self.answer(503, "Service busy, try again", request, ((b"retry-after", b"1"),))
            return
        if request.upgrade and wants_websocket(request):
            self.upgrade(request)
            return
        keep_alive = request.keep_alive and not service.draining
        service.requests += 1
        if service.requests == service.limit_max_requests and service.on_limit is not None:
            keep_alive = False
            service.on_limit()
        self.writer.begin(request.method, request.http_version, keep_alive)
        request_id = b""
        if service.request_ids is not None:
            request = request.twin()
            request_id = service.request_ids.give(request)
        scope = request_scope(request, transport, service.root_path, service.state)
        if service.fields.forwarded and service.proxies is not None:
            service.proxies.apply(scope)
        cycle = HTTPCycle(self, service.stepper, transport, self.writer, request, scope)
        cycle.request_id = request_id
        self.cycle = cycle
        self.deadline.at = NEVER
        self.awaited = "app"
        service.cycles += 1
        if request.chunked or request.content_length:
            self.begin_body(cycle)
            if cycle.disconnected:  # the body was broken from its first byte: answered already
                service.cycles -= 1
                return
        else:
            self.parser.read_end()  # what next_event would do: nothing else can follow
            cycle.input = "ended"
        coro = service.app(scope, cycle.receive, cycle.send)
        cycle.task = service.stepper.spawn(coro, cycle.on_done, service.context.copy())
        if cycle.state == "started":
            cycle.flush()

    def upgrade(self, request: Request) -> None:
        """Hand the connection over, with the request and the bytes behind it (RFC 9110 §7.8)."""
        try:
            successor = WebSocketConnection(
                self.service, self.transport, request, self.parser.take_rest()
            )
        except ProtocolError as exc:
            self.refuse(exc)
            return
        self.deadline.close()
        self.service.connections.discard(self)
        successor.start()

    def begin_body(self, cycle: HTTPCycle) -> None:
        """Hand over the body if all of it is here, as is usual; else begin to read it."""
        whole = b"" if self.transport.trace else self.parser.take_whole_body()
        if whole:
            cycle.on_data(whole)
            cycle.input = "ended"
        else:
            self.read_body(cycle)

    def read_body(self, cycle: HTTPCycle) -> None:
        """Hand over what is here of the body; stop reading when the app does not take it."""
        while cycle.input == "open":
            if cycle.pieces_size > BODY_WATERMARK:
                self.transport.pause_reading()
                self.wait_for("app", NEVER)
                return
            event = self.next_event()
            if type(event) is Data:
                size = len(event.data)
                self.body_progress += size
                if size >= READ_SIZE:
                    self.transport.read_size = LARGE_READ
                cycle.on_data(event.data)
            elif type(event) is EndOfMessage:
                self.transport.read_size = READ_SIZE
                cycle.on_end()
                if self.awaited == "body":
                    self.wait_for("app", NEVER)
            elif event is NEED_DATA:
                idle = self.deadline.at == NEVER  # a 100 (Continue) was to be sent first
                if self.awaited != "body" or idle or self.body_progress >= BODY_PROGRESS:
                    self.body_progress = 0
                    waits = NEVER if cycle.unanswered_expect else self.service.timeout_body
                    self.wait_for("body", waits)
                return
            else:
                return

    def body_wanted(self, cycle: HTTPCycle) -> None:
        """The app is in receive(): read on, or tell it at once what is known already."""
        if cycle is not self.cycle:
            return
        if cycle.input == "open":
            if not self.parser.eof:
                self.transport.resume_reading()
            self.read_body(cycle)
        elif self.parser.eof and cycle.input == "delivered":
            cycle.on_disconnect()

    def response_complete(self, cycle: HTTPCycle) -> None:
        """The last byte is written: go on with the next request, or close.

        When there is little else to do in this turn the client reads meanwhile; when there is much,
        answers leave together at its end, which costs less.
        """
        service = self.service
        transport = self.transport
        parser = self.parser
        if service.reactor.few and len(parser.buffer) == parser.position:
            transport.flush()
        if cycle is not self.cycle:
            return
        if service.access_log is not None:
            self.log_when_sent(cycle)
        self.cycle = None
        if not self.writer.keep_alive or service.draining == "now":
            # a client that did not ask for the end may be talking still
            talking = cycle.request.keep_alive or self.parser.buffered > 0
            self.finish(talking or cycle.input == "open")
            return
        if cycle.input == "open":
            self.awaited = "rest"
            self.discarded = 0
        else:
            self.awaited = "request"
        # not reactor.now: the app may have held this turn for longer than that
        self.deadline.set(service.reactor.clock() + service.timeout_keep_alive)
        if not transport.reading or len(parser.buffer) > parser.position:
            self.read_on()

    def renew_date(self) -> None:
        """Keep the Date right for an app that took its time."""
        self.service.renew_date()

    def response_broken(self, cycle: HTTPCycle, reason: str) -> None:
        """The rest of a response cannot be had: end it in its middle, and say why."""
        error_logger.error("%s: %s", printable(reason), asked_for(cycle.request))
        if cycle is self.cycle:
            self.cut()

    def read_on(self) -> None:
        """Read the next request, out of what is here already or of what will come."""
        buffered = self.parser.buffered
        if not self.parser.eof and buffered <= PIPELINE_WATERMARK:
            self.transport.resume_reading()
        if (buffered or self.parser.eof) and not self.planned:
            self.planned = True
            self.service.reactor.call_soon(self.read_burst)

    def cycle_done(self, cycle: HTTPCycle, exc: BaseException | None) -> None:
        """The app has returned or raised; without a complete response that has consequences."""
        service = self.service
        service.cycles -= 1
        if service.on_change is not None:
            service.on_change(exc)
        if exc is None and cycle.state == "complete":
            return
        if exc is not None:
            service.heed(exc)
            hint = cycle.stepper.explain(exc)
            tag = cycle.request_id and f" [{cycle.request_id.decode()}]"
            log_app_error(exc, f"{asked_for(cycle.request)}{tag or ''}", hint)
        if cycle.state == "complete" or cycle is not self.cycle:
            return
        if cycle.disconnected and not service.draining:  # the client has ended its side
            self.cut()
            return
        # by us only at shutdown, or when the client has left
        cancelled = isinstance(exc, Cancelled)
        unanswered = cycle.state in ("waiting", "started")
        if not cycle.disconnected and (exc is None or (cancelled and not service.draining)):
            error_logger.error(
                "the app %s %s: %s",
                "was cancelled" if cancelled else "returned",
                "without a response" if unanswered else "in mid-response",
                asked_for(cycle.request),
            )
        if unanswered:
            if service.draining and (cycle.disconnected or cancelled):
                self.answer(503, "Shutting down", cycle.request)
            else:
                self.answer(500, "Internal Server Error", cycle.request)
        else:
            self.cut()

    # -- the ends of a connection --------------------------------------------------------------

    def refuse(self, exc: ProtocolError) -> None:
        """Answer a broken request, and never read on: the one place for ProtocolError."""
        import logging  # here, so that to import the single file does not load it

        exc.__traceback__ = exc.__context__ = None  # frames hold the parser, which keeps exc
        level = logging.DEBUG if exc.reason.startswith("the client closed") else logging.WARNING
        self.service.complaints.log(level, f"{self.transport.peer_name}: {exc.status} {exc.reason}")
        cycle = self.cycle
        request = self.parser.request if cycle is None else cycle.request  # which has its id
        if cycle is not None and self.writer.framing not in ("waiting", "held"):
            self.cut()
        elif self.awaited == "rest":
            self.finish(True)  # it has its answer: a second one would pass for the next request's
        else:
            self.answer(exc.status, exc.reason, request, exc.headers)
        if cycle is not None:
            cycle.on_disconnect()

    def answer(
        self,
        status: int,
        text: str,
        request: Request,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send an answer of our own, the last one of this connection."""
        service = self.service
        cycle, self.cycle = self.cycle, None
        service.renew_date()
        if service.request_ids is not None and request.target:  # the one it has, or a new one
            headers = [*headers, (b"x-request-id", service.request_ids.give(request))]
        head_only = request.method == "HEAD"
        if self.transport.state == "open":
            self.transport.write([plain_answer(status, text, service.defaults, head_only, headers)])
        if cycle is not None:
            cycle.state, cycle.status, cycle.response_headers = "complete", status, ()
            cycle.body_sent = len(text) + 1
            self.log_when_sent(cycle)
        elif request.target:
            size = 0 if head_only else len(text) + 1
            log_exchange(service, Exchange(request, self.transport.peer, status, size))
        self.finish(True)

    def finish(self, unread: bool) -> None:
        """Close once all is sent; with ``unread`` input, so that the client can read it first."""
        unread = unread or self.awaited == "rest"  # what it is still sending
        self.deadline.set(NEVER)
        if self.awaited != "close" and self in self.service.connections:
            self.service.parting += 1
        self.awaited = "close"
        if unread and not self.parser.eof:
            if self.service.draining:
                self.deadline.set(self.service.reactor.now + LAST_WORDS)
            self.transport.linger()
        else:
            self.transport.close()

    def cut(self) -> None:
        """End a response in its middle, so that the client sees that it is not complete."""
        self.transport.drop_file()
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            self.log_when_sent(cycle)
        if self.writer.framing == "until-close":
            self.transport.flush()  # the answers before this one
            self.transport.abort()  # a clean end would look like a complete body
        else:
            self.finish(True)

    def wait_for(self, awaited: Awaited, timeout: float) -> None:
        """Hold the one deadline, for ``awaited``."""
        self.awaited = awaited
        self.deadline.set(self.service.reactor.now + timeout)

    def on_deadline(self) -> None:
        """What was waited for has not come in time."""
        if self.transport.trace:
            self.transport.trace("timer", self.transport, f"waited too long for the {self.awaited}")
        if self.awaited in ("head", "body"):
            self.refuse(ProtocolError(f"the request {self.awaited} did not come in time", 408))
        else:
            self.end_idle()

    def end_idle(self) -> None:
        """Close, if the client has been idle for long enough: since it read its last answer."""
        service, transport = self.service, self.transport
        now = service.reactor.now
        patience = ON_ITS_WAY if service.draining == "now" else service.timeout_keep_alive
        idle_since = now if transport.out else transport.drained_at
        if idle_since + patience > now:
            self.deadline.set(idle_since + patience)
            return
        if transport.reading:
            transport.read(EVENT_READ)  # a request that has come already is answered
        if self.awaited == "close":
            transport.lost(None)
        elif self.cycle is None and self.deadline.at == NEVER:
            self.finish(False)

    def close_if_idle(self, gently: bool) -> None:
        """Close, at shutdown, a connection between two requests; else this one is its last.

        ``gently``: it may ask once more, since it may be doing so just now.
        """
        if self.cycle is None and not gently and self.transport.reading:
            self.transport.read(EVENT_READ)  # a request that has come already is answered
        if self.cycle is not None:
            if not gently or self.writer.framing in ("waiting", "held"):
                self.writer.keep_alive = False
        elif not gently and self.transport.state == "open":
            idle_since = self.deadline.at - self.service.timeout_keep_alive
            if self.awaited == "request" and self.service.reactor.now < idle_since + ON_ITS_WAY:
                self.deadline.set(idle_since + ON_ITS_WAY)
            else:
                self.finish(bool(self.transport.out))

    def tell_end(self, everybody: bool) -> None:
        """Tell, at shutdown, a stream or a long poll that it should end.

        Or ``everybody``: any request, and nobody may begin another one.
        """
        cycle = self.cycle
        if cycle is not None:
            if everybody or cycle.streams or cycle.waits_for_client:
                cycle.on_disconnect()
        elif everybody and self.transport.state == "open":
            self.finish(bool(self.transport.out))

    # -- the books -----------------------------------------------------------------------------

    def is_too_many(self) -> bool:
        """Tell whether the worker has more to do, or holds more, than it was allowed."""
        service = self.service
        if service.memory is not None and service.memory.level > 2:
            return True
        limit = service.limit_concurrency
        count = len(service.connections) - service.parting  # who was refused makes room
        return limit > 0 and (count > limit or service.cycles >= limit)

    def held_bytes(self) -> int:
        """Count the bytes in our buffers."""
        body = 0 if self.cycle is None else self.cycle.pieces_size
        return self.parser.buffered + body + self.transport.out_size

    def log_when_sent(self, cycle: HTTPCycle) -> None:
        """Have the access line written once the last byte of a response has left."""
        self.unlogged.append(cycle)
        if self.transport.out:
            self.transport.on_flushed = self.log_requests
        else:  # it has left already: a large piece at once, or all but an empty last one
            self.log_requests()

    def log_requests(self, ended: str = "") -> None:
        """Write an access line for each response whose last byte has left, or never will."""
        cycles, self.unlogged = self.unlogged, []
        if self.service.access_log is not None:
            unsent = self.transport.out_size if ended else 0
            log_cycles(self.service, cycles, unsent, ended, self.parser.eof)
