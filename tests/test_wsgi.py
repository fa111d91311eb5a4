"""wsgi: PEP 3333 on threads: the call with its two ends alone, then real servers and frameworks."""

from __future__ import annotations

import contextvars
import hashlib
import importlib.util
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from selectserve.errors import ClientDisconnected
from selectserve.reactor import Reactor
from selectserve.task import Event, NativeStepper, current_stepper, sleep
from selectserve.wsgi import FileWrapper, WSGIApp, WSGICall

from . import wsgi_apps
from .support import DEADLINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine

    from .support import RawClient, Response, Server

    Serve = Callable[..., Server]

TEXT = wsgi_apps.TEXT
SOURCE = Path(wsgi_apps.__file__).read_bytes()


# -- without a server: scope and messages in, messages out ---------------------------------------


def run_here(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a reactor of its own, as the server does."""
    reactor = Reactor()
    stepper = NativeStepper(reactor)

    def run() -> Any:
        current_stepper.set(stepper)
        return stepper.run(main)

    timer = reactor.call_later(DEADLINE, lambda: os.abort())  # rather than hang
    try:
        return contextvars.copy_context().run(run)
    finally:
        timer.cancel()
        reactor.close()


def make_scope(**changes: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("10.0.0.9", 50000),
        "server": ("127.0.0.1", 8000),
    }
    scope.update(changes)
    return scope


class Client:
    """The other side of a call: its body, and what it is sent."""

    def __init__(self, *body: bytes, cut: bool = False) -> None:
        self.inbox = [{"type": "http.request", "body": data, "more_body": True} for data in body]
        if self.inbox and not cut:
            self.inbox[-1]["more_body"] = False
        self.sent: list[dict[str, Any]] = []
        self.received = 0

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        await sleep(0)
        return self.inbox.pop(0) if self.inbox else {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await sleep(0)
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def pieces(self) -> list[tuple[bytes, bool]]:
        return [(m["body"], m["more_body"]) for m in self.sent if "body" in m]


def call(app: Any, client: Client | None = None, /, **scope: Any) -> Client:
    """Call a WSGI app once; return the client with what it was sent."""
    client = client or Client()
    if client.inbox and "headers" not in scope:
        scope["headers"] = [(b"transfer-encoding", b"chunked")]
    run_here(WSGIApp(app)(make_scope(**scope), client.receive, client.send))
    return client


def environ_of(**scope: Any) -> dict[str, Any]:
    """Return the environ that an app gets."""
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        return wsgi_apps.hello(environ, start_response)

    call(app, **scope)
    return seen[0]


def test_environ() -> None:
    environ = environ_of(
        method="POST",
        raw_path=b"/a",
        query_string=b"b=%20c&\xe9",
        headers=[(b"host", b"app.test"), (b"content-type", b"a/b"), (b"content-length", b"5")],
    )
    errors, body = environ.pop("wsgi.errors"), environ.pop("wsgi.input")
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b=%20c&\xe9",
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "5",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.0.9",
        "REMOTE_PORT": "50000",
        "HTTP_HOST": "app.test",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }
    assert type(environ) is dict
    assert callable(errors.write) and callable(body.readline)


PATHS = [
    # root_path, raw_path as in the scope, SCRIPT_NAME, PATH_INFO
    ("", b"/", "", "/"),
    ("", b"/a%20b/%2F%C3%A9", "", "/a b//\xc3\xa9"),
    ("", b"/%FF%zz%", "", "/\xff%zz%"),
    ("", b"/a+b;c,d", "", "/a+b;c,d"),
    ("/app", b"/app/x%2fy", "/app", "/x/y"),
    ("/app", b"/app/app", "/app", "/app"),
    ("/\xe9", "/\xe9/x".encode(), "/\xc3\xa9", "/x"),
    ("/app/", b"/app//x", "/app", "/x"),
    ("/", b"//x", "", "/x"),
]


@pytest.mark.parametrize(("root_path", "raw_path", "script_name", "path_info"), PATHS)
def test_path(root_path: str, raw_path: bytes, script_name: str, path_info: str) -> None:
    environ = environ_of(root_path=root_path, raw_path=raw_path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_header_fields() -> None:
    environ = environ_of(
        headers=[
            (b"x-a", b"1"),
            (b"cookie", b"a=b"),
            (b"x-real_ip", b"6.6.6.6"),
            (b"x_real_ip", b"6.6.6.6"),
            (b"x-a", b"2"),
            (b"cookie", b"c=d"),
            (b"x-high", b"\xe9"),
            (b"content_length", b"5"),
            (b"proxy", b"http://evil"),
        ]
    )
    names = {key: value for key, value in environ.items() if key.startswith(("HTTP", "CONT"))}
    assert names == {
        "HTTP_X_A": "1,2",
        "HTTP_COOKIE": "a=b; c=d",
        "HTTP_X_HIGH": "\xe9",
        "HTTP_PROXY": "http://evil",
    }


@pytest.mark.parametrize(
    ("scheme", "server", "expected"),
    [
        ("http", ("::1", 80), ("::1", "80")),
        ("http", ("/run/x", None), ("localhost", "80")),
        ("https", ("/run/x", None), ("localhost", "443")),
        ("https", None, ("localhost", "443")),
    ],
)
def test_server_name_and_port_are_never_empty(scheme: str, server: Any, expected: Any) -> None:
    environ = environ_of(scheme=scheme, server=server, client=None)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == expected
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("", "")
    assert environ["wsgi.url_scheme"] == scheme


def test_a_response_of_one_piece_is_one_message() -> None:
    client = call(wsgi_apps.hello)
    assert client.sent == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"Content-Type", b"text/plain")],
        },
        {"type": "http.response.body", "body": b"hello", "more_body": False},
    ]


@pytest.mark.parametrize(
    ("result", "pieces"),
    [
        ([], [(b"", False)]),
        ((), [(b"", False)]),
        ([b""], [(b"", False)]),
        ([b"a"], [(b"a", False)]),
        ([b"a", b"b"], [(b"a", True), (b"b", True), (b"", False)]),
        ([b"", b"a", b""], [(b"a", True), (b"", False)]),
        (iter([b"a"]), [(b"a", True), (b"", False)]),
        (iter([]), [(b"", False)]),
        ({b"a": 1}, [(b"a", False)]),
    ],
)
def test_pieces(result: Any, pieces: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("204 No Content", [])
        return result

    assert call(app).pieces == pieces


def test_write_comes_first_and_head_leaves_with_it() -> None:
    client = Client()

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        assert client.sent == []
        write(b"")
        assert client.sent == []
        write(b"a")
        assert client.pieces == [(b"a", True)]
        write(b"b")
        return [b"c"]

    assert call(app, client).pieces == [(b"a", True), (b"b", True), (b"c", False)]


def test_head_is_held_until_the_first_byte() -> None:
    """PEP 3333: headers are not sent before there is a body, so that an app may change its mind."""
    client = Client()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        yield b""
        assert client.sent == []
        try:
            raise LookupError
        except LookupError:
            start_response("503 Busy", [], sys.exc_info())
        yield b"a"
        assert client.status == 503

    assert call(app, client).sent[0]["headers"] == []


def test_app_may_start_its_response_when_it_is_iterated() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("201 Created", TEXT)
        yield b"a"

    assert call(app).status == 201


MISTAKES = [
    # what the app does with start_response, what is raised, what the message says
    (lambda s: s("200 OK", [("Connection", "close")]), ValueError, "'Connection' is hop-by-hop"),
    (lambda s: s("200 OK", [("TRANSFER-encoding", "x")]), ValueError, "hop-by-hop"),
    (lambda s: s("200 OK", [("Upgrade", "x")]), ValueError, "hop-by-hop"),
    (lambda s: s("200 OK", [("a b", "x")]), ValueError, "not a token"),
    (lambda s: s("200 OK", [("a", "x\r\ny: z")]), ValueError, "CR, LF or NUL"),
    (lambda s: s("200 OK", [("a", "\u20ac")]), ValueError, "'a' has a character beyond Latin-1"),
    (lambda s: s("200 OK", [("a", 5)]), TypeError, "must be str"),
    (lambda s: s("200 OK", [(b"a", b"b")]), TypeError, "must be str"),
    (lambda s: s("200 OK", [("a", "b", "c")]), ValueError, "unpack"),
    (lambda s: s("OK", []), ValueError, "looks like '200 OK', not 'OK'"),
    (lambda s: s("20 OK", []), ValueError, "not '20 OK'"),
    (lambda s: s("+20 OK", []), ValueError, "not '+20 OK'"),
    (lambda s: s("\u0662\u0660\u0660 OK", []), ValueError, "looks like"),
    (lambda s: s("", []), ValueError, "looks like"),
    (lambda s: (s("200 OK", []), s("200 OK", [])), AssertionError, "called again"),
    (lambda s: None, AssertionError, "did not call start_response"),
    (lambda s: s("200 OK", [])("text"), TypeError, "must yield bytes, not str"),
    (lambda s: s("200 OK", [])(bytearray(b"x")), TypeError, "must yield bytes, not bytearray"),
]


@pytest.mark.parametrize(("mistake", "error", "says"), MISTAKES)
def test_mistakes_are_raised_where_they_are_made(mistake: Any, error: Any, says: str) -> None:
    client = Client()

    def app(environ: Any, start_response: Any) -> Any:
        mistake(start_response)
        return [b"body"]

    with pytest.raises(error, match=None) as raised:
        call(app, client)
    assert says in str(raised.value)
    assert client.sent == []


def test_exc_info_before_the_body_replaces_the_response_and_after_it_is_raised() -> None:
    client = Client()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-A", "b")])
        try:
            raise LookupError("one")
        except LookupError:
            start_response("500 Error", [("X-C", "d")], sys.exc_info())
        yield b"sorry"
        try:
            raise LookupError("two")
        except LookupError:
            start_response("500 Error", [], sys.exc_info())
        raise AssertionError("start_response did not raise")

    with pytest.raises(LookupError, match="two"):
        call(app, client)
    assert client.sent[0]["status"] == 500
    assert client.sent[0]["headers"] == [(b"X-C", b"d")]
    assert client.pieces == [(b"sorry", True)]


class Result:
    """An iterable that counts how often it is closed."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> Result:
        return self

    def __next__(self) -> bytes:
        piece = next(self.pieces)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([b"a", b"b"], None),
        ([], None),
        ([b"a", LookupError("in the middle")], LookupError),
        ([LookupError("at once")], LookupError),
        (["text"], TypeError),
    ],
)
def test_result_is_closed_once_whatever_happens(pieces: Any, error: Any) -> None:
    result = Result(*pieces)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return result

    if error is None:
        call(app)
    else:
        with pytest.raises(error):
            call(app)
    assert result.closed == 1


def test_the_answer_is_sent_before_the_app_cleans_up() -> None:
    client, at_close = Client(), []

    class Slow(Result):
        def close(self) -> None:
            at_close.append(client.pieces[-1])

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Slow(b"a")

    call(app, client)
    assert at_close == [(b"", False)]


def test_what_close_raises_is_not_lost() -> None:
    class Bad(Result):
        def close(self) -> None:
            raise LookupError("in close")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Bad(b"a")

    with pytest.raises(LookupError, match="in close"):
        call(app)


READS = [
    # how the app reads, what it gets of b"one\ntwo\nthree"
    (lambda f: f.read(), b"one\ntwo\nthree"),
    (lambda f: f.read(5), b"one\nt"),
    (lambda f: f.read(5000), b"one\ntwo\nthree"),
    (lambda f: f.read(0), b""),
    (lambda f: f.readline(), b"one\n"),
    (lambda f: f.readline(2), b"on"),
    (lambda f: f.readlines(), [b"one\n", b"two\n", b"three"]),
    (lambda f: list(f), [b"one\n", b"two\n", b"three"]),
    (lambda f: (f.read(4), f.readline(), f.read(), f.read(), f.readline()),
     (b"one\n", b"two\n", b"three", b"", b"")),
]  # fmt: skip


@pytest.mark.parametrize(("read", "expected"), READS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_input(read: Any, expected: Any, size: int) -> None:
    data = b"one\ntwo\nthree"
    client = Client(*(data[i : i + size] for i in range(0, len(data), size)), b"")
    seen = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(read(environ["wsgi.input"]))
        return wsgi_apps.hello(environ, start_response)

    call(app, client)
    assert seen == [expected]


def test_body_is_asked_for_when_the_app_reads_and_not_before() -> None:
    client = Client(b"a" * 10, b"b" * 10, b"c" * 10)
    counts = []

    def app(environ: Any, start_response: Any) -> Any:
        counts.append(client.received)
        environ["wsgi.input"].read(10)
        counts.append(client.received)
        environ["wsgi.input"].read(1)
        counts.append(client.received)
        return wsgi_apps.hello(environ, start_response)

    call(app, client)
    assert counts == [0, 1, 2]


@pytest.mark.parametrize(
    "headers", [[], [(b"content-length", b"0")], [(b"content-length", b"000")]]
)
def test_without_a_body_nothing_is_asked(headers: Any) -> None:
    client = Client()

    def app(environ: Any, start_response: Any) -> Any:
        assert environ["wsgi.input"].read() == b""
        assert environ["wsgi.input"].readline() == b""
        return wsgi_apps.hello(environ, start_response)

    call(app, client, headers=headers)
    assert client.received == 0


def test_a_cut_body_never_looks_complete() -> None:
    raised = []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            environ["wsgi.input"].read()
        except OSError as exc:
            raised.append(exc)
            raise

    client = call(app, Client(b"abc", cut=True))
    assert type(raised[0]) is ClientDisconnected
    assert client.sent == []


# -- files ---------------------------------------------------------------------------------------


def test_file_wrapper(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)
    opened = []

    def app(environ: Any, start_response: Any) -> Any:
        opened.append(path.open("rb"))
        opened[-1].seek(1)
        start_response("200 OK", environ["test.headers"])
        return environ["wsgi.file_wrapper"](opened[-1], 4096)

    def serve_file(headers: Any, **scope: Any) -> Client:
        def with_headers(environ: Any, start_response: Any) -> Any:
            environ["test.headers"] = headers
            return app(environ, start_response)

        client = call(with_headers, **scope)
        assert opened[-1].closed
        return client

    client = serve_file([])
    assert client.body == path.read_bytes()[1:]
    assert len(client.pieces) < 10, "blocks of a regular file are larger than the app thinks"
    assert serve_file([("Content-Length", "300000")]).body == path.read_bytes()[1:300001]
    assert serve_file([("content-length", "0")]).body == b""
    assert serve_file([("Content-Length", "9999999")]).body == path.read_bytes()[1:]
    assert serve_file([("Content-Length", "1048575")], method="HEAD").body == b""


def test_file_wrapper_of_something_that_is_no_regular_file() -> None:
    asked = []

    class Pipe:
        """Has read, and neither close nor fileno."""

        def __init__(self) -> None:
            self.file = io.BytesIO(b"abcdef")

        def read(self, size: int) -> bytes:
            asked.append(size)
            return self.file.read(size)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        wrapper = environ["wsgi.file_wrapper"](Pipe(), 4)
        assert not hasattr(wrapper, "close")
        return wrapper

    assert call(app).pieces == [(b"abcd", True), (b"ef", True), (b"", False)]
    assert asked == [4, 4, 4]


# -- the talk between the thread and the coroutine -----------------------------------------------


class Leaving(Client):
    """A client that is gone after so many messages."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self.left = messages

    async def send(self, message: dict[str, Any]) -> None:
        if not self.left:
            raise ClientDisconnected("gone")
        self.left -= 1
        await super().send(message)


@pytest.mark.parametrize("messages", range(6))
def test_client_leaves(messages: int) -> None:
    """The generator is closed, nothing more is produced, and it is no error of the app's."""
    produced, closed = [], []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            start_response("200 OK", TEXT)
            for number in range(1000):
                produced.append(number)
                yield b"x"
        finally:
            closed.append(True)

    client = call(app, Leaving(messages))
    assert closed == [True]
    assert len(produced) == max(1, messages)
    assert len(client.sent) == messages


def test_client_leaves_while_the_app_writes() -> None:
    raised = []

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        for _ in range(3):
            try:
                write(b"x")
            except OSError as exc:
                raised.append(exc)
        return [b"ignored"]

    call(app, Leaving(2))
    assert [type(exc) for exc in raised] == [ClientDisconnected, ClientDisconnected]


def test_cancelled_while_the_thread_waits_for_the_client() -> None:
    """The thread is let go at once, and cannot ask any more."""
    waiting, ended = threading.Event(), threading.Event()
    raised = []

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        try:
            for _ in range(3):
                try:
                    write(b"x")
                except OSError as exc:
                    raised.append(exc)
            return []
        finally:
            ended.set()

    async def send(message: dict[str, Any]) -> None:
        waiting.set()
        await Event().wait()  # a client that never reads

    async def main() -> None:
        wsgi = WSGIApp(app)
        stepper = current_stepper.get()
        tasks = len(stepper.tasks)
        outcome: list[BaseException | None] = []
        coro = wsgi(make_scope(), Client().receive, send)
        task = stepper.spawn(coro, outcome.append, contextvars.copy_context())
        while not waiting.is_set():
            await sleep(0.001)
        task.cancel()
        while not ended.is_set() or wsgi.free != wsgi.workers:
            await sleep(0.001)
        assert not isinstance(outcome[0], Exception)
        assert len(stepper.tasks) == tasks, "a task outlives its request"

    run_here(main())
    assert [type(exc) for exc in raised] == [ClientDisconnected] * 3


def test_a_question_that_arrives_after_the_end_is_not_asked() -> None:
    """The thread has its last answer by then; what it asked must not touch the connection."""
    client = Client()

    async def main() -> None:
        wsgi_call = WSGICall(client.receive, client.send)
        wsgi_call.close()
        wsgi_call.on_ask(client.receive, ())
        await sleep(0)

    run_here(main())
    assert client.received == 0


def test_threads_are_bounded_and_requests_wait_their_turn() -> None:
    workers = 3
    together = threading.Barrier(workers, timeout=DEADLINE)
    lock = threading.Lock()
    running: list[int] = [0]
    most: list[int] = []

    def app(environ: Any, start_response: Any) -> Any:
        with lock:
            running[0] += 1
            most.append(running[0])
        together.wait()  # as many as there are workers do run at once
        with lock:
            running[0] -= 1
        return wsgi_apps.hello(environ, start_response)

    async def main() -> None:
        wsgi = WSGIApp(app, workers)
        stepper = current_stepper.get()
        clients = [Client() for _ in range(4 * workers)]
        for client in clients:
            coro = wsgi(make_scope(), client.receive, client.send)
            stepper.spawn(coro, lambda exc: None, contextvars.copy_context())
        while any(client.body != b"hello" for client in clients) or wsgi.free != workers:
            await sleep(0.001)

    run_here(main())
    assert len(most) == 4 * workers
    assert max(most) == workers


def test_cancelled_while_waiting_for_a_thread() -> None:
    """A turn is neither lost nor given twice, whenever the cancel comes."""
    go, called = threading.Event(), []

    def app(environ: Any, start_response: Any) -> Any:
        called.append(environ["PATH_INFO"])
        assert go.wait(DEADLINE)
        return wsgi_apps.hello(environ, start_response)

    async def main() -> None:
        wsgi = WSGIApp(app, 1)
        stepper = current_stepper.get()
        client = Client()

        def start(name: str) -> Any:
            scope = make_scope(raw_path=name.encode())
            coro = wsgi(scope, client.receive, client.send)
            return stepper.spawn(coro, lambda exc: None, contextvars.copy_context())

        start("/first")
        second, third, _fourth = start("/second"), start("/third"), start("/fourth")
        while not called or len(wsgi.queue) < 3:
            await sleep(0)
        second.cancel()  # while it waits
        turn = wsgi.queue[1]
        turn_set = turn.set
        go.set()
        while not turn.is_set():
            await sleep(0)
        third.cancel()  # when it has been given its turn, and does not know yet
        assert turn_set is not None
        while len(called) < 2 or wsgi.free != 1:
            await sleep(0.001)

    run_here(main())
    assert called[0] == "/first"
    assert called[-1] == "/fourth"
    assert "/second" not in called


def test_each_call_has_its_own_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="fresh")
    seen = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        seen.append(variable.get())
        variable.set("used")
        yield b"a"
        seen.append(variable.get())

    async def main() -> None:
        wsgi = WSGIApp(app, 1)
        for _ in range(2):
            await wsgi(make_scope(), Client().receive, Client().send)

    run_here(main())
    assert seen == ["fresh", "used", "fresh", "used"]


def test_lifespan_and_websocket() -> None:
    async def main() -> None:
        wsgi, sent = WSGIApp(wsgi_apps.hello), []
        inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> dict[str, Any]:
            return inbox.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])

        await wsgi({"type": "lifespan"}, receive, send)
        await wsgi({"type": "websocket"}, receive, send)
        assert sent == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
            "websocket.close",
        ]

    run_here(main())


def test_wsgi_errors_never_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = environ_of()
    errors = environ["wsgi.errors"]
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    errors.write("a\n")
    errors.writelines(["b\n", "c\n"])
    errors.flush()
    assert written.getvalue() == "a\nb\nc\n"
    written.close()
    with open(os.devnull) as not_writable:
        for broken in (written, None, not_writable):
            monkeypatch.setattr(sys, "stderr", broken)
            errors.write("nobody reads this")
            errors.flush()


# -- real servers --------------------------------------------------------------------------------


@pytest.fixture
def start(module_serve: Serve) -> Callable[..., RawClient]:
    """Serve one of wsgi_apps and connect to it: ``start("echo")``."""

    def start_and_connect(app: str, *arguments: str) -> RawClient:
        clients.append(
            module_serve(f"tests.wsgi_apps:{app}", "--interface", "wsgi", *arguments).connect()
        )
        return clients[-1]

    clients: list[RawClient] = []
    yield start_and_connect
    for client in clients:
        client.close()


def server_of(module_serve: Serve, app: str) -> Server:
    return module_serve(f"tests.wsgi_apps:{app}", "--interface", "wsgi")


def read_json(response: Response) -> dict[str, Any]:
    assert response.status == 200, response
    result: dict[str, Any] = json.loads(response.body)
    return result


def test_validated_by_wsgiref(start: Any) -> None:
    client = start("validated_echo")
    client.request("GET", "/a%20b?c=d", "X-A: 1", "X-A: 2", "Cookie: a=b")
    environ = read_json(client.read_response())
    assert environ["PATH_INFO"] == "/a b"
    assert environ["QUERY_STRING"] == "c=d"
    assert environ["HTTP_X_A"] == "1,2"
    assert environ["HTTP_HOST"] == "test"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["SERVER_PORT"] == str(client.socket.getpeername()[1])
    assert environ["REMOTE_PORT"] == str(client.socket.getsockname()[1])
    client.request("POST", "/", "Content-Type: a/b", body=b"x" * 100_000)
    environ = read_json(client.read_response())
    assert environ["body"] == "x" * 100_000
    assert environ["CONTENT_LENGTH"] == "100000"
    client.request("HEAD", "/")
    assert client.read_response("HEAD").status == 200
    client.send(
        b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    assert read_json(client.read_response())["body"] == "hello world"


def test_validated_input_errors_and_write(start: Any, module_serve: Serve) -> None:
    client = start("validated")
    client.request("POST", "/", body=b"one\ntwo\nthree\nfour\n")
    response = client.read_response()
    assert response.body == b"[one\ntwo\nthree\nfour\n]"
    assert response.framing == "chunked"
    client.request("HEAD", "/")
    assert client.read_response("HEAD").get("x-twice") == b"1"
    log = server_of(module_serve, "validated").wait_for_log("noted: another")
    assert log
    assert "Traceback" not in server_of(module_serve, "validated").log_text()


def test_hello_keeps_the_connection_and_has_a_length(start: Any) -> None:
    client = start("hello")
    for _ in range(50):
        response = client.get("/")
        assert response.body == b"hello"
        assert response.get("content-length") == b"5"
    client.request("GET", "/", version="1.0")
    assert client.read_response().body == b"hello"
    assert client.is_closed()


def test_pipelined(start: Any) -> None:
    client = start("hello")
    client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 100)
    assert [client.read_response().body for _ in range(100)] == [b"hello"] * 100


def test_a_body_that_the_app_does_not_read(start: Any) -> None:
    client = start("hello")
    client.request("POST", "/", body=b"x" * 1000)
    assert client.read_response().body == b"hello"
    assert client.get("/").body == b"hello"


def test_streams_both_ways(start: Any) -> None:
    """Each piece is on the wire before the app makes the next, and each line read as it comes."""
    client = start("duplex")
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.read_head().status == 200
    assert client.read_until(b"ready\n\r\n") == b"6\r\nready\n\r\n"
    for word in (b"one\n", b"two\n"):
        client.send(b"4\r\n" + word + b"\r\n")
        assert client.read_until(b"\n\r\n") == b"4\r\n" + word.upper() + b"\r\n"
    client.send(b"0\r\n\r\n")
    assert client.read_exactly(5) == b"0\r\n\r\n"
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nend\n")
    assert client.read_response().chunks == [b"ready\n", b"END\n"]


def test_continue_is_sent_when_the_app_reads(start: Any) -> None:
    client = start("duplex")
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert client.read_until(b"ready\n\r\n").startswith(b"HTTP/1.1 ")
    client.send(b"abc")
    assert client.read_until(b"0\r\n\r\n").endswith(b"3\r\nABC\r\n0\r\n\r\n")


def test_a_client_that_does_not_read_and_leaves(module_serve: Serve) -> None:
    """The app is stopped where it yields, and closed when the client is gone."""
    server = server_of(module_serve, "endless")
    client = server.connect(receive_buffer=65536)
    client.request("GET", "/")
    assert client.read_head().status == 200
    assert server.stderr.wait_for("50 MB produced", deadline=0.5) is None
    client.reset()
    found = server.wait_for_log(r"closed after (\d+) bytes")
    assert 0 < int(found[1]) < 50_000_000
    assert "Traceback" not in server.log_text()


def test_a_client_that_leaves_while_the_app_writes(start: Any, module_serve: Serve) -> None:
    client = start("endless_write")
    server = server_of(module_serve, "endless_write")
    client.request("GET", "/")
    assert client.read_head().status == 200
    client.reset()
    assert server.wait_for_log("write raised ClientDisconnected")
    assert "Traceback" not in server.log_text()


def test_a_client_that_leaves_inside_its_body(start: Any, module_serve: Serve) -> None:
    client = start("cut_upload")
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    client.close()
    server = server_of(module_serve, "cut_upload")
    assert server.wait_for_log("read raised ClientDisconnected")
    client = start("cut_upload")
    client.request("POST", "/", body=b"abc")
    assert client.read_response().body == b"complete"
    assert "Traceback" not in server.log_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for memory")
def test_a_large_upload_takes_little_memory(start: Any) -> None:
    size = 100_000_000
    client = start("upload")
    client.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
    block, digest = bytes(range(250)) * 4000, hashlib.sha256()
    for _ in range(size // len(block)):
        client.send(block)
        digest.update(block)
    length, hexdigest, growth = client.read_response().body.decode().split()
    assert (int(length), hexdigest) == (size, digest.hexdigest())
    # what PyPy's collector leaves lying about is not the server's
    assert int(growth) < (20_000_000 if sys.implementation.name == "cpython" else 60_000_000)


def test_files(start: Any) -> None:
    client = start("this_file")
    assert client.get("/").body == SOURCE
    part = client.get("/?10+100")
    assert part.body == SOURCE[10:110]
    assert part.get("content-length") == b"100"
    client.request("HEAD", "/?10+100")
    assert client.read_response("HEAD").get("content-length") == b"100"
    assert client.get("/").body == SOURCE


@pytest.mark.parametrize("where", ["before", "hop", "newline", "twice", "never", "text"])
def test_app_fails_before_its_response(start: Any, module_serve: Serve, where: str) -> None:
    client = start("failing")
    server = server_of(module_serve, "failing")
    position = server.log_position()
    assert client.get(f"/{where}").status == 500
    server.wait_for_log(r"^\w*(Error|Exception)\b", start=position)


def test_app_replaces_its_response(start: Any) -> None:
    response = start("failing").get("/replaced")
    assert (response.status, response.body) == (503, b"sorry")
    assert response.get("x-error") == b"yes"


def test_app_fails_in_its_response(start: Any, module_serve: Serve) -> None:
    client = start("failing")
    response = client.get("/later")
    assert response.status == 200
    assert response.body == b"first "
    assert not response.complete, "a response that was cut must not look complete"
    server_of(module_serve, "failing").wait_for_log("LookupError: the app failed in its response")


def test_root_path(start: Any) -> None:
    environ = read_json(start("validated_echo", "--root-path", "/app").get("/x"))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/x")


def test_stops_with_a_request_in_progress(serve: Serve) -> None:
    server = serve("tests.wsgi_apps:duplex", "--interface", "wsgi")
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
    assert b"ready" in client.read_until(b"ready\n\r\n")
    server.send_signal()
    client.send(b"end\n")
    assert client.read_until_close().endswith(b"4\r\nEND\n\r\n0\r\n\r\n")
    client.close()
    assert server.wait() == 0
    assert "Traceback" not in server.log_text()


def test_the_same_on_asyncio(serve: Serve) -> None:
    """The talk does not depend on who steps the coroutines."""

    def serve_on_asyncio(app: str) -> Server:
        return serve(f"tests.wsgi_apps:{app}", "--interface", "wsgi", "--loop", "asyncio")

    with serve_on_asyncio("duplex").connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.read_until(b"ready\n\r\n").endswith(b"6\r\nready\n\r\n")
        client.send(b"4\r\none\n\r\n0\r\n\r\n")
        assert client.read_until(b"0\r\n\r\n") == b"4\r\nONE\n\r\n0\r\n\r\n"
    server = serve_on_asyncio("endless")
    with server.connect(receive_buffer=65536) as client:
        client.request("GET", "/")
        assert client.read_head().status == 200
        client.reset()
    server.wait_for_log(r"closed after \d+ bytes")
    server = serve_on_asyncio("failing")
    with server.connect() as client:
        assert client.get("/before").status == 500
    server.wait_for_log("LookupError: the app failed before its response")
    assert server.stop() == 0


# -- real frameworks -----------------------------------------------------------------------------


def need(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


FORM = (
    b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n"
    b"--XX\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
    + b"z" * 300_000
    + b"\r\n--XX--\r\n"
)
FORM_TYPE = "Content-Type: multipart/form-data; boundary=XX"


def test_flask(start: Any, module_serve: Serve) -> None:
    need("flask")
    client = start("make_flask", "--factory")
    assert client.get("/?name=you%C3%A9").body == "hello you\xe9 from 127.0.0.1".encode()
    client.request("POST", "/form", FORM_TYPE, body=FORM)
    assert read_json(client.read_response()) == {"fields": {"a": "b"}, "file": 300_000}
    client.send(
        b"POST /json HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n7\r\n[1, 2, \r\n2\r\n3]\r\n0\r\n\r\n"
    )
    assert read_json(client.read_response()) == {"got": [1, 2, 3]}
    stream = client.get("/stream")
    assert stream.body == b"".join(b"%d /stream\n" % n for n in range(5))
    assert stream.framing == "chunked"
    assert client.get("/file").body == SOURCE
    part = client.get("/file", "Range: bytes=10-19")
    assert (part.status, part.body) == (206, SOURCE[10:20])
    client.request("HEAD", "/file")
    assert client.read_response("HEAD").get("content-length") == str(len(SOURCE)).encode()
    assert client.get("/nowhere").status == 404
    assert client.get("/fail").status == 500
    assert client.get("/").status == 200
    server = module_serve("tests.wsgi_apps:make_flask", "--interface", "wsgi", "--factory")
    server.wait_for_log("LookupError: flask fails")


def test_django(start: Any) -> None:
    need("django")
    client = start("make_django", "--factory")
    assert client.get("/?name=me").body == b"hello me at test"
    client.request("POST", "/form", FORM_TYPE, body=FORM)
    assert client.read_response().body == b"b 300000"
    assert client.get("/stream").body == b"".join(b"%d /stream\n" % n for n in range(5))
    assert client.get("/file").body == SOURCE
    client.request("HEAD", "/file")
    assert client.read_response("HEAD").get("content-length") == str(len(SOURCE)).encode()
    assert client.get("/nowhere").status == 404
    assert client.get("/fail").status == 500
    assert client.get("/").status == 200
