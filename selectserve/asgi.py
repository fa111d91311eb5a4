"""asgi: where the app's side of a request lives: its scope, its receive and its send.

A cycle is one request and its response. The connection puts in what the client says
(``on_data``, ``on_end``, ``on_disconnect``); the app takes it out with ``receive`` and answers
with ``send``. Neither suspends while data or room is there; else the call parks on a waiter of
its own. What the app may send next is a table, HTTP_LIFECYCLE; a message that is not in it gets
one sentence that teaches.
"""

from __future__ import annotations

from functools import cache, partial

from .errors import ClientDisconnected
from .filesend import open_path, share_file
from .grammar import field_list
from .response import CONTINUE, check_pair
from .task import Parking, thread_pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable
    from typing import Any, Callable, Literal, Protocol

    from .filesend import FileSend
    from .http1 import Request
    from .reactor import Timer
    from .response import ResponseWriter
    from .task import Stepper
    from .transport import Transport

    Message = dict[str, Any]
    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
    ResponseState = Literal[
        "waiting", "started", "headed", "streaming", "sending", "trailing", "complete"
    ]
    InputState = Literal["open", "ended", "delivered", "cut"]

    class CycleOwner(Protocol):
        """What a cycle asks of its connection."""

        def response_complete(self, cycle: HTTPCycle) -> None: ...
        def response_broken(self, cycle: HTTPCycle, reason: str) -> None: ...
        def body_wanted(self, cycle: HTTPCycle) -> None: ...
        def cycle_done(self, cycle: HTTPCycle, exc: BaseException | None) -> None: ...
        def renew_date(self) -> None: ...


PERCENT = 0x25  # "%" as a number: `bytes in bytes` first fails to read them as one, and costs 2 %
PIECE_COST = 64  # bytes that a piece of a body takes besides its own: chunks may be tiny
ASGI_VERSION = "3.0"
HTTP_SPEC_VERSION = "2.5"
# Each extension, and what must be true of a connection for it to work there (see offered_to).
EXTENSIONS = {
    "tls": "tls",  # its content is what the handshake agreed on
    "http.response.trailers": "http 1.1",
    "http.response.early_hint": "http 1.1",  # RFC 9110 §15.2: nothing interim to HTTP/1.0
    "http.response.pathsend": "http",
    "http.response.zerocopysend": "http",
    "http.response.debug": "http trace",  # "not meant to be used in production"
    "websocket.http.response": "websocket",
}


@cache
def hex_values() -> dict[bytes, bytes]:
    """Return what two hexadecimal digits stand for; 50 KB that many apps never need."""
    digits = "0123456789abcdefABCDEF"
    pairs = [high + low for high in digits for low in digits]
    return {pair.encode(): bytes((int(pair, 16),)) for pair in pairs}


def decode_path(raw_path: bytes) -> str:
    """Percent-decode once, then read as UTF-8; what cannot be decoded becomes U+FFFD."""
    first, *rest = raw_path.split(b"%")
    parts = [first]
    values = hex_values()
    for part in rest:
        byte = values.get(part[:2])
        parts += (b"%", part) if byte is None else (byte, part[2:])
    return b"".join(parts).decode("utf-8", "replace")


@cache
def offered_to(scope_type: str, http_version: str, plain: bool, untraced: bool) -> tuple[str, ...]:
    """Return which of EXTENSIONS work for such a request."""
    facts = {scope_type, http_version, "" if plain else "tls", "" if untraced else "trace"}
    return tuple(name for name, needs in EXTENSIONS.items() if facts.issuperset(needs.split()))


USUAL_OFFERS = {version: offered_to("http", version, True, True) for version in ("1.0", "1.1")}


def request_scope(
    request: Request,
    transport: Transport,
    root_path: str,
    state: dict[str, Any] | None,
    scope_type: str = "http",
) -> Scope:
    """Build the scope of one request (ASGI HTTP and WebSocket: connection scope), all of it new.

    It is that of an HTTP request; for a WebSocket the caller changes type and scheme, and has
    subprotocols in the place of the method. From the third time on that the parser shows the same
    request, what nobody can change in a scope is copied from the last one.
    """
    memo = request.memo
    if memo and transport.trace is None:
        scope: Scope = memo.copy()
        offers = scope["extensions"]
    else:
        raw_path = request.raw_path
        path = decode_path(raw_path) if PERCENT in raw_path else raw_path.decode("latin-1")
        if root_path:
            path = root_path + path
            raw_path = root_path.encode() + raw_path
        plain, untraced = transport.secure is None, transport.trace is None
        if plain and untraced and scope_type == "http":
            offers = USUAL_OFFERS[request.http_version]
        else:
            offers = offered_to(scope_type, request.http_version, plain, untraced)
        scope = {
            "type": "http",
            "asgi": None,
            "http_version": request.http_version,
            "method": request.method,
            "scheme": "https" if transport.secure else "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": request.query_string,
            "root_path": root_path,
            "headers": None,
            "client": transport.peer,
            "server": transport.local,
            "extensions": offers,
        }
        request.memo = False if memo is None or not untraced else scope.copy()
    scope["asgi"] = {"version": ASGI_VERSION, "spec_version": HTTP_SPEC_VERSION}
    scope["headers"] = request.headers.copy()
    # one empty dict a request for all those that have nothing to say
    scope["extensions"] = dict.fromkeys(offers, {})
    if transport.secure is not None:
        scope["extensions"]["tls"] = transport.secure.copy()
    if state is not None:
        scope["state"] = state.copy()
    return scope


def client_name(client: tuple[str, int] | None) -> str:
    """Name a client in the log; the port is 0 where a proxy did not tell it."""
    if client is None:
        return "unix"
    host, port = client
    return f"{host}:{port}" if port else host


def with_request_id(
    headers: Iterable[Iterable[bytes]], request_id: bytes
) -> list[tuple[bytes, ...]]:
    """Return an answer's headers with the id of its request, unless the app has set it."""
    pairs = [tuple(pair) for pair in headers]
    if not any(pair and pair[0].lower() == b"x-request-id" for pair in pairs):
        pairs.append((b"x-request-id", request_id))
    return pairs


class HTTPCycle(Parking):
    """One request and its response: the ``receive`` and ``send`` of one call of the app."""

    __slots__ = (
        "body_sent",
        "client",
        "disconnected",
        "input",
        "owner",
        "pieces",
        "pieces_size",
        "receiving",
        "request",
        "request_id",
        "response_headers",
        "scope",
        "started_at",
        "state",
        "status",
        "stepper",
        "task",
        "timer",
        "transport",
        "unanswered_expect",
        "writer",
    )

    def __init__(
        self,
        owner: CycleOwner,
        stepper: Stepper,
        transport: Transport,
        writer: ResponseWriter,
        request: Request,
        scope: Scope,
    ) -> None:
        self.owner = owner
        self.stepper = stepper
        self.transport = transport
        self.writer = writer
        self.request = request
        self.scope = scope
        self.client = scope["client"]  # for the log, whatever the app does to its scope
        self.request_id = b""  # to be told in the answer
        self.response_headers: Iterable[Iterable[bytes]] = ()
        self.state: ResponseState = "waiting"
        self.input: InputState = "open"
        self.disconnected = False
        self.unanswered_expect = request.expect_continue
        self.pieces: list[bytes] | None = None  # of the body, received and not yet delivered
        self.pieces_size = 0
        self.waiters = None  # of receive() and send()
        self.receiving = 0  # how many calls of receive() wait
        self.status = 0  # of the response, once it is started
        self.body_sent = 0
        self.started_at = transport.reactor.now
        self.task: Any = None
        self.timer: Timer | None = None  # of a head held back; of an app whose client has left

    def __repr__(self) -> str:
        return f"<HTTPCycle {self.request!r} {self.state}, input {self.input}>"

    # -- what the connection puts in -----------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """A piece of the body has come."""
        if self.pieces is None:
            self.pieces = [data]
        else:
            self.pieces.append(data)
        self.pieces_size += len(data) + PIECE_COST
        self.unanswered_expect = False
        if self.waiters:
            self.release_waiters()

    def on_end(self) -> None:
        """The body is complete."""
        self.input = "ended"
        if self.waiters:
            self.release_waiters()

    def on_disconnect(self) -> None:
        """The client is gone, or has broken its body: nothing more can be said to the app."""
        known, self.disconnected = self.disconnected, True
        self.pieces = None
        self.pieces_size = 0
        if self.input == "open":
            self.input = "cut"
        if self.streams and not known:
            self.start_timer(ABANDONED_TIME, self.cancel_stream)
        self.release_waiters()

    def cancel_stream(self) -> None:
        """Cancel an app that has neither sent nor received since its client left.

        A stream of events waits for the next one, and may wait for ever: it learns from send()
        that nobody listens, and with spec 2.4 frameworks look nowhere else.
        """
        if self.timer is not None and self.task is not None:
            self.timer = None
            self.task.cancel()

    def start_timer(self, delay: float, action: Callable[[], None]) -> None:
        """Run ``action`` after ``delay`` seconds, behind an app that has its next step then."""
        self.stop_timer()
        reactor = self.stepper.reactor
        self.timer = reactor.call_later(delay, partial(reactor.call_soon, action))

    def stop_timer(self) -> None:
        """The app knows that its client is gone, or has ended: what follows is its own affair."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def gone(self) -> ClientDisconnected:
        """Return what is raised to an app whose client is gone (spec 2.4)."""
        self.stop_timer()
        return ClientDisconnected("the client is gone")

    def on_done(self, exc: BaseException | None) -> None:
        """The app has returned, or raised."""
        if self.timer is not None:
            self.stop_timer()
        self.owner.cycle_done(self, exc)
        if self.waiters:  # of a task that it has left behind
            self.disconnected = self.state != "complete"
            self.release_waiters()

    @property
    def waits_for_client(self) -> bool:
        """True when the app has all of the request and waits in receive(): for a disconnect."""
        return self.input == "delivered" and self.receiving > 0

    @property
    def streams(self) -> bool:
        """True when the app has begun an answer whose end only it knows."""
        endless = self.state == "started" and self.writer.declared is None
        return endless or self.state in ("headed", "streaming")

    @property
    def bodiless(self) -> bool:
        """True when the client gets no body, whatever the app sends (RFC 9112 §6.3)."""
        return self.request.method == "HEAD" or self.status in (204, 304)

    @property
    def body_size(self) -> int:
        """How many bytes of body the client was sent."""
        return 0 if self.bodiless else self.body_sent

    # -- the app's two callables ---------------------------------------------------------------

    async def receive(self) -> Message:
        """Return the next message (ASGI HTTP: http.request, then http.disconnect for ever)."""
        while True:
            if self.disconnected or self.state == "complete":
                self.stop_timer()
                return {"type": "http.disconnect"}
            if self.pieces or self.input == "ended":
                return self.take_body()
            if self.unanswered_expect:  # RFC 9110 §10.1.1: now the body is wanted
                self.unanswered_expect = False
                if self.state in ("waiting", "started"):  # a head held back is no answer yet
                    self.transport.write([CONTINUE])
            self.owner.body_wanted(self)
            if not self.disconnected:
                self.receiving += 1
                try:
                    await self.park(self.stepper)
                finally:
                    self.receiving -= 1

    def take_body(self) -> Message:
        """Deliver all that is there as one message, and let the connection read on."""
        pieces, self.pieces = self.pieces or (), None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.pieces_size = 0
        if self.input == "ended":
            self.input = "delivered"
            return {"type": "http.request", "body": body, "more_body": False}
        self.owner.body_wanted(self)
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(self, message: Message) -> None:
        """Take the app's next message; wait while the client does not read.

        Raises ClientDisconnected, an OSError, when the client is gone (spec 2.4); RuntimeError,
        TypeError or ValueError, with nothing written, when the message is not right.
        """
        try:
            handler = HTTP_LIFECYCLE[self.state][message["type"]]
        except KeyError:
            self.refuse(message.get("type"))
            return
        if self.disconnected:
            raise self.gone()
        handler(self, message)
        if self.transport.writing_paused:
            await self.drain()

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        while self.transport.writing_paused and self.state != "complete":
            if self.disconnected:
                raise self.gone()
            await self.park(self.stepper)

    def refuse(self, kind: object) -> None:
        """Raise the sentence that teaches, or ignore what comes after the end."""
        if self.state == "complete" and kind in HTTP_MESSAGES:
            return  # ASGI HTTP: "will be ignored"
        if kind not in HTTP_MESSAGES:
            raise RuntimeError(f"unknown ASGI message type {kind!r} for an HTTP response") from None
        if self.disconnected:  # each time, also when the app went on after the first
            raise self.gone() from None
        allowed = " or ".join(key for key in HTTP_LIFECYCLE[self.state] if key in HTTP_PLAIN)
        allowed = allowed or "nothing, the send() before this one has not returned"
        raise RuntimeError(
            f"{kind} cannot be sent while the response is {self.state}, only {allowed}"
        ) from None

    def on_start(self, message: Message) -> None:
        """Hold status and headers until the first piece of the body."""
        try:
            status = message["status"]
        except KeyError:
            raise TypeError("http.response.start needs a status") from None
        headers = message["headers"] if "headers" in message else ()
        if self.request_id:
            headers = with_request_id(headers, self.request_id)
        if self.transport.reactor.now != self.started_at:
            self.owner.renew_date()  # RFC 9110 §6.6.1: it is of the answer, not of the question
        writer = self.writer
        if "trailers" in message and message["trailers"]:
            accepts = b"trailers" in field_list(self.request.headers, b"te")
            writer.start(status, headers, True, accepts)
        else:
            writer.start(status, headers)
        self.response_headers = headers
        self.status = writer.status
        self.state = "started"
        if self.task is not None and writer.declared is None:
            self.transport.reactor.unflushed.append(self)

    def flush(self) -> None:
        """The turn ends, or the first step: the head of a stream does not wait long for its body.

        For a while it may: a body that comes in one piece gets its length, and an exception a 500.
        """
        if self.state == "started" and self.writer.declared is None and not self.disconnected:
            self.start_timer(HEAD_TIME, self.send_head)

    def send_head(self) -> None:
        """Send a head that waits still: its client wants to know that the stream has begun."""
        if self.state == "started" and not self.disconnected:
            self.timer = None
            if self.input == "open" and self.unread_is_much():
                self.writer.keep_alive = False
            self.transport.write(self.writer.send(b"", True))
            self.state = "headed"

    def on_body(self, message: Message) -> None:
        """Frame and write a piece of the body."""
        body = message["body"] if "body" in message else b""  # get() is a call more
        if type(body) is not bytes:
            if not isinstance(body, (bytes, bytearray, memoryview)):
                raise TypeError(f"http.response.body needs bytes, not {type(body).__name__}")
            body = bytes(body)  # a copy: the app may overwrite its buffer afterwards
        more = "more_body" in message and bool(message["more_body"])
        writer = self.writer
        if self.input == "open" and writer.framing == "held" and self.unread_is_much():
            writer.keep_alive = False  # decided when the head goes out: it has to say so
        pieces = writer.send(body, more)
        self.body_sent += len(body)  # before it is lost, perhaps, in the write
        if writer.fault and writer.declared is not None:
            self.body_sent = min(self.body_sent, writer.declared)
        self.transport.write(pieces)
        if writer.framing == "complete":
            self.state = "complete"
            self.owner.response_complete(self)
            if self.waiters or writer.fault:
                self.end()
        elif more:
            self.state = "streaming"
        else:
            self.state = "trailing"

    def on_pathsend(self, message: Message) -> None:
        """Send the file at a path as the whole body (spec: path send)."""
        self.send_file(open_path(message.get("path"), self, thread_pool))

    def on_zerocopysend(self, message: Message) -> None:
        """Send what the app has open, or a part of it, as a piece of the body (zero copy send)."""
        offset, count = message.get("offset"), message.get("count")
        more = bool(message.get("more_body", False))
        self.send_file(share_file(message.get("file"), offset, count, more, self, thread_pool))

    def send_file(self, file: FileSend) -> None:
        """Frame a file and give it to the transport, which goes on by itself; ``send`` waits."""
        writer = self.writer
        if self.input == "open" and writer.framing == "held" and self.unread_is_much():
            writer.keep_alive = False
        try:
            pieces = writer.begin_file(file.size, file.more)
        except ValueError:
            file.close()
            raise
        if pieces:
            self.transport.write(pieces)
        if writer.framing == "bodiless" or not file.size:
            file.close()
            self.end_file(file)
            return
        self.state = "sending"
        self.transport.send_file(file)
        if self.disconnected:
            raise self.gone()

    def on_file_sent(self, file: FileSend) -> None:
        """The kernel has it all: the body goes on, or was that."""
        self.end_file(file)

    def on_file_broken(self, file: FileSend, reason: str) -> None:
        """The rest of the file cannot be had, and the client was promised it."""
        self.owner.response_broken(self, f"{file.name} was not sent to its end: {reason}")
        self.on_disconnect()

    def end_file(self, file: FileSend) -> None:
        """Frame the end of a file's bytes."""
        pieces = self.writer.end_file(file.size, file.more)
        if pieces:
            self.transport.write(pieces)
        if file.more:
            self.state = "streaming"
        elif self.writer.trailers:
            self.state = "trailing"
        else:
            self.state = "complete"
            self.owner.response_complete(self)
            self.end()

    def on_debug(self, message: Message) -> None:
        """Tell what the app says about its answer, to whoever watches (spec: debug)."""
        if self.transport.trace is None:
            raise RuntimeError("http.response.debug is for those who watch: start with --trace")
        self.transport.trace("debug", self.transport, repr(message.get("info"))[:MAX_DEBUG])

    def on_trailers(self, message: Message) -> None:
        """Write trailer fields where this framing has a place for them (spec: trailers)."""
        more = bool(message.get("more_trailers", False))
        pieces = self.writer.send_trailers(message.get("headers", ()), more)
        if pieces:
            self.transport.write(pieces)
        if not more:
            self.state = "complete"
            self.owner.response_complete(self)
            self.end()

    def on_early_hint(self, message: Message) -> None:
        """Write a 103 with the links, before the final head (RFC 8297)."""
        links = [check_pair((b"link", link))[1] for link in message.get("links", ())]
        for link in links:
            if not link.startswith(b"<") or b">" not in link:
                raise ValueError(f"{link[:80]!r} is no link: write </style.css>; … (RFC 8288 §3)")
        if links and self.request.http_version == "1.1" and self.writer.framing == "held":
            lines = b"".join(b"link: " + link + b"\r\n" for link in links)
            self.transport.write([b"HTTP/1.1 103 Early Hints\r\n" + lines + b"\r\n"])

    def unread_is_much(self) -> bool:
        """Tell whether the rest of the body is not worth reading only to throw it away."""
        length = self.request.content_length
        return self.unanswered_expect or (length is not None and length > MAX_DISCARD)

    def end(self) -> None:
        """Tell who waits that nothing more will come, and the app if it miscounted its body.

        A receive() that waits beside the one who answers is told a few rounds later: mostly it is
        cancelled before, and what it raises would make Django's requests garbage in cycles.
        """
        if len(self.waiters or ()) > self.receiving:  # a send(), too
            self.release_waiters()
        elif self.waiters:
            self.tell_later(AFTER_ROUNDS)
        fault = self.writer.fault
        if fault:
            self.writer.fault = ""
            raise ValueError(fault)

    def tell_later(self, rounds: int) -> None:
        """Tell who waits then."""
        if not rounds:
            self.release_waiters()
        elif self.waiters:
            self.stepper.reactor.call_soon(partial(self.tell_later, rounds - 1))


AFTER_ROUNDS = 10  # of the ready queue, in which an app that has answered ends a receive() beside
HEAD_TIME = 0.1  # seconds that the head of a stream waits for its first piece
ABANDONED_TIME = 2.0  # seconds in which an app that streams should notice that nobody listens
MAX_DISCARD = 65536  # bytes of a body nobody wants that are read to keep the connection
MAX_DEBUG = 2000  # characters of what http.response.debug tells

HTTP_PLAIN = ("http.response.start", "http.response.body", "http.response.trailers")
# What the app may send, by the state of the response; anything else is refused or ignored.
HTTP_LIFECYCLE: dict[ResponseState, dict[object, Callable[[HTTPCycle, Message], None]]] = {
    "waiting": {
        "http.response.start": HTTPCycle.on_start,
        "http.response.debug": HTTPCycle.on_debug,
    },
    "started": {
        "http.response.body": HTTPCycle.on_body,
        "http.response.early_hint": HTTPCycle.on_early_hint,
        "http.response.pathsend": HTTPCycle.on_pathsend,
        "http.response.zerocopysend": HTTPCycle.on_zerocopysend,
    },
    "headed": {  # as before, but that the head is sent
        "http.response.body": HTTPCycle.on_body,
        "http.response.early_hint": HTTPCycle.on_early_hint,
        "http.response.pathsend": HTTPCycle.on_pathsend,
        "http.response.zerocopysend": HTTPCycle.on_zerocopysend,
    },
    "streaming": {
        "http.response.body": HTTPCycle.on_body,
        "http.response.early_hint": HTTPCycle.on_early_hint,
        "http.response.zerocopysend": HTTPCycle.on_zerocopysend,
    },
    "sending": {},  # the transport has a file of ours, and will say so when it is done
    "trailing": {"http.response.trailers": HTTPCycle.on_trailers},
    "complete": {},
}
HTTP_MESSAGES = frozenset(kind for row in HTTP_LIFECYCLE.values() for kind in row)
