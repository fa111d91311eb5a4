"""wsgi: a WSGI app (PEP 3333) seen as an ASGI app, on threads.

A WSGI app waits where it stands: for its body, and for a client that does not read. So each call
gets a worker thread, where waiting harms nobody; the reactor still never waits. What only the
reactor may do, the thread asks for, and blocks on ``answers`` until it is done:

    worker thread        ask(receive or send)  --call_from_thread-->  reactor: a task awaits it
                         its message or error  <-----answers.put----  and answers, once

They speak strictly in turns, so nothing is touched by both at a time, and back-pressure needs no
code: the next piece of a body is read when the app asks for it, the next piece of an answer when
there was room for the last. When the coroutine ends first (it was cancelled), ``close`` gives the
last answer there is, ClientDisconnected, and the thread never asks again.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections import deque
from contextvars import copy_context

from .errors import ClientDisconnected
from .response import check_pair
from .task import Event, run_in_thread, stepper_here, thread_pool_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable
    from typing import Any, Callable, Literal

    from .asgi import Message, Receive, Scope, Send
    from .task import Cancels

    WSGIFunction = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
    WSGIState = Literal["waiting", "held", "sent"]

# PEP 3333: an app must not use these; they belong to the connection, which is the server's.
HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer trailers "
    "transfer-encoding upgrade".split()
)
FILE_BLOCK = 262144  # of a regular file; Django suggests 4096, and each block is a hand-over


class WSGIApp:
    """An ASGI app that runs the WSGI app ``app``: ``WSGIApp(flask_app, workers=10)``.

    At most ``workers`` calls run at once; a request waits, as a coroutine, for its turn. A thread
    counts until it ends, even if its client is long gone. ``multiprocess`` is told to the app.
    """

    def __init__(self, app: WSGIFunction, workers: int = 10, multiprocess: bool = False) -> None:
        thread_pool_class("a WSGI app")  # to be told now
        self.app = app
        self.workers = workers
        self.free = workers
        self.queue: deque[Event] = deque()  # requests that wait for a thread, oldest first
        self.constants = {
            "wsgi.version": (1, 0),
            "wsgi.errors": WSGIErrors(),
            "wsgi.multithread": workers > 1,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,  # a read ends where the body does, chunked ones too
        }

    def __repr__(self) -> str:
        return f"<WSGIApp {self.app!r}, {self.free} of {self.workers} threads free>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; complete a lifespan at once; refuse a WebSocket with 403."""
        if scope["type"] == "lifespan":
            await complete_lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await self.take_thread()
        call = WSGICall(receive, send)
        try:
            await call.send_all(await run_in_thread(self.work, call, scope))
        except ClientDisconnected:
            pass  # nobody is left to be told
        finally:
            call.close()

    def work(self, call: WSGICall, scope: Scope) -> list[Message]:
        """Run the app; return the messages that are left to be sent. On the worker thread."""
        try:
            environ = make_environ(scope, call)
            environ.update(self.constants)
            return call.run(self.app, environ)
        finally:
            call.stepper.reactor.call_from_thread(self.free_thread)

    async def take_thread(self) -> None:
        """Count a thread as busy, when it is our turn to have one."""
        if self.free:
            self.free -= 1
            return
        turn = Event()
        self.queue.append(turn)
        try:
            await turn.wait()
        except BaseException:  # cancelled; perhaps between having got the turn and learning it
            if turn.is_set():
                self.free_thread()
            else:
                self.queue.remove(turn)
            raise

    def free_thread(self) -> None:
        """Hand a thread to the request that has waited longest, if one waits."""
        if self.queue:
            self.queue.popleft().set()
        else:
            self.free += 1


async def complete_lifespan(receive: Receive, send: Send) -> None:
    """Answer for an app that has no lifespan: it is always ready, and ends at once."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


class WSGICall:
    """One call of a WSGI app: both ends of the talk between its thread and its coroutine.

    ``on_ask``, ``answer``, ``send_all`` and ``close`` run on the reactor's thread, all others on
    the worker's.

        waiting -> held (start_response; the head leaves with the first byte) -> sent
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        from queue import SimpleQueue

        self.receive = receive
        self.send = send
        self.stepper = stepper_here()
        self.context = copy_context()
        self.answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self.answering: Cancels | None = None
        self.closed = False
        self.body_ended = False
        self.state: WSGIState = "waiting"
        self.head: Message = {}
        self.length: int | None = None  # the app's Content-Length

    # -- the talk --------------------------------------------------------------------------------

    def ask(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Have the reactor await ``work(*args)``; block until then; return or raise what it did."""
        if self.closed:
            raise ClientDisconnected("the request is over")
        self.stepper.reactor.call_from_thread(lambda: self.on_ask(work, args))
        result, exc = self.answers.get()
        if exc is not None:
            try:
                raise exc
            finally:
                exc = None  # else a cycle: traceback, frame, exception
        return result

    def on_ask(self, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Start a task that finds the answer."""
        if not self.closed:
            coro = self.answer(work, args)
            self.answering = self.stepper.spawn(coro, lambda _exc: None, self.context)

    async def answer(self, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Await for the thread, and tell it what came of it."""
        try:
            result = await work(*args)
        except Exception as exc:
            self.answers.put((None, exc))
        else:
            self.answers.put((result, None))

    async def send_all(self, messages: list[Message]) -> None:
        """Send ``messages`` in order."""
        for message in messages:
            await self.send(message)

    def close(self) -> None:
        """Answer whatever the thread asks, or is asking, for the last time."""
        self.closed = True
        if self.answering is not None:
            self.answering.cancel()
        self.answers.put((None, ClientDisconnected("the request is over")))

    # -- what the app is given -------------------------------------------------------------------

    def run(self, app: WSGIFunction, environ: dict[str, Any]) -> list[Message]:
        """Call the app and send what it returns; return the messages that are left to send.

        An iterable of one piece is sent in one go, with its length. When there is nothing to
        close, the end of the answer is left to the coroutine, which saves a hand-over.
        """
        if self.closed:
            return []
        result = app(environ, self.start_response)
        close = getattr(result, "close", None)
        try:
            if type(result) is FileWrapper:
                result.left = 0 if environ["REQUEST_METHOD"] == "HEAD" else self.length
            last = b""
            size = getattr(result, "__len__", None)
            alone = size is not None and size() == 1
            for data in result:
                if alone:
                    last = data
                elif data:
                    self.ask(self.send_all, self.take_messages(data, True))
            messages = self.take_messages(last, False)
            if close is None:
                return messages
            self.ask(self.send_all, messages)  # before close, which may take its time
            return []
        finally:
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take status and headers, and hold them until there is a body; return ``write``."""
        if exc_info:
            try:
                if self.state == "sent":
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else a cycle: traceback, frame, traceback
        elif self.state != "waiting":
            raise AssertionError("start_response was called again, and without exc_info")
        pairs = list(map(encode_header, headers))
        self.length = declared_length(pairs)
        self.head = {
            "type": "http.response.start",
            "status": parse_status(status),
            "headers": pairs,
        }
        self.state = "held"
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body now: the older way, for apps that cannot yield it."""
        if data:
            self.ask(self.send_all, self.take_messages(data, True))

    def take_messages(self, data: bytes, more: bool) -> list[Message]:
        """Make the ASGI messages of a piece of the body, the head before the first."""
        if not isinstance(data, bytes):
            raise TypeError(f"a WSGI app must yield bytes, not {type(data).__name__}: encode it")
        if self.state == "waiting":
            raise AssertionError("the app did not call start_response before its body")
        messages = [self.head] if self.state == "held" else []
        messages.append({"type": "http.response.body", "body": data, "more_body": more})
        self.state = "sent"
        return messages

    def read_body(self) -> bytes:
        """Return the next piece of the request's body as it arrives, nothing at its end."""
        data = b""
        while not data and not self.body_ended:
            message = self.ask(self.receive)
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client left before its body was complete")
            data = message.get("body", b"")
            self.body_ended = not message.get("more_body", False)
        return data


def parse_status(status: str) -> int:
    """Read ``200 OK``; the reason is ours to choose (response has the table)."""
    code = status.partition(" ")[0]
    if not (len(code) == 3 and code.isascii() and code.isdigit()):
        raise ValueError(f"a WSGI status looks like '200 OK', not {status!r}")
    return int(code)


def declared_length(pairs: list[tuple[bytes, bytes]]) -> int | None:
    """Return the Content-Length, None without a proper one."""
    for name, value in pairs:
        if name.lower() == b"content-length" and value.isdigit() and len(value) < 19:
            return int(value)
    return None


def encode_header(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    """Return name and value as bytes; raise TypeError or ValueError that names the header."""
    name, value = pair
    if type(name) is not str or type(value) is not str:
        raise TypeError(f"WSGI header name and value must be str, not {pair!r}")
    if name.lower() in HOP_BY_HOP:
        raise ValueError(f"header {name!r} is hop-by-hop, and not for apps to set (PEP 3333)")
    try:
        return check_pair((name.encode("latin-1"), value.encode("latin-1")))
    except UnicodeEncodeError:
        raise ValueError(
            f"header {name!r} has a character beyond Latin-1 in its value {value[:80]!r}: WSGI has "
            "no place for it, encode it some other way (PEP 3333)"
        ) from None


# -- the environ -------------------------------------------------------------------------------


def make_environ(scope: Scope, call: WSGICall) -> dict[str, Any]:
    """Build what differs from request to request; all text is bytes decoded as Latin-1."""
    raw_path, root = scope["raw_path"], scope["root_path"].encode()
    path = raw_path[len(root) :] if raw_path.startswith(root) else raw_path
    if b"%" in path:
        from urllib.parse import unquote_to_bytes

        path = unquote_to_bytes(path)
    server = scope["server"]
    if server is None or server[1] is None:  # a unix socket, but neither may be empty
        server = ("localhost", 443 if scope["scheme"] == "https" else 80)
    host, port = scope["client"] or ("", "")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.decode("latin-1").rstrip("/"),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "wsgi.url_scheme": scope["scheme"],
    }
    for name, value in scope["headers"]:
        if b"_" in name:
            continue  # X_Real_IP would pass for X-Real-IP here
        key = header_key(name)
        text = value.decode("latin-1")
        if key in environ:  # RFC 9110 §5.3; cookies are the exception (RFC 6265 §5.4)
            text = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
        environ[key] = text
    if environ.get("CONTENT_LENGTH", "0").strip("0") or "HTTP_TRANSFER_ENCODING" in environ:
        environ["wsgi.input"] = io.BufferedReader(BodyInput(call), 65536)
    else:
        environ["wsgi.input"] = io.BytesIO()
    return environ


def header_key(name: bytes) -> str:
    """Name a request header as CGI does."""
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


class BodyInput(io.RawIOBase):
    """The request's body as a raw stream; io.BufferedReader makes ``wsgi.input`` of it."""

    def __init__(self, call: WSGICall) -> None:
        super().__init__()
        self.call = call
        self.piece = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with what is there; block when nothing is; 0 at the end."""
        if not self.piece:
            self.piece = memoryview(self.call.read_body())
        size = min(len(buffer), len(self.piece))
        buffer[:size] = self.piece[:size]
        self.piece = self.piece[size:]
        return size


class WSGIErrors:
    """``wsgi.errors``: standard error as it is now; when nobody reads it, nothing fails."""

    def write(self, text: str) -> int:
        """Write ``text``."""
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError, AttributeError):  # gone, closed, never there
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is buffered."""
        try:
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass


class FileWrapper:
    """``wsgi.file_wrapper``: a file's blocks, from where it stands to its end or Content-Length."""

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike
        self.block_size = max(block_size, FILE_BLOCK) if is_regular(filelike) else block_size
        self.left: int | None = None  # bytes that may still be read; None is all
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        left = self.left
        data: bytes = self.filelike.read(
            self.block_size if left is None else min(left, self.block_size)
        )
        if not data:
            raise StopIteration
        if left is not None:
            self.left = left - len(data)
        return data


def is_regular(filelike: Any) -> bool:
    """Tell whether reads give what is asked for at once, which those of a pipe do not."""
    try:
        return stat.S_ISREG(os.fstat(filelike.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False
