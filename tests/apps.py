"""Small ASGI apps for the tests; ``app`` serves each of them by the first segment of the path.

They use nothing but the ASGI interface and selectserve's own primitives. What an app saw is told
to the test through stderr (``note``), tagged with the query string, or in the response as a
``repr`` that the test reads back with ``ast.literal_eval``, so that types are compared exactly.
"""

from __future__ import annotations

import contextvars
import functools
import http
from urllib.parse import parse_qsl, unquote_to_bytes

from .telling import say

APPS = {}
GATES = {}
NAME = contextvars.ContextVar("NAME", default="unset")


def route(function):
    """Serve ``function`` under its own name."""
    APPS[function.__name__] = function
    return function


async def app(scope, receive, send):
    """Call the app that the path names; without a lifespan of its own."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await APPS.get(scope["path"].split("/")[1], not_found)(scope, receive, send)


def note(scope, *words):
    """Tell the test something: one line ``APP tag words``."""
    say("APP", scope["query_string"].decode(), *words)


def query(scope):
    """Return the query as a dict of str."""
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


def gate(name):
    """Return the Event of that name, which the app ``open_gate`` sets."""
    from selectserve import Event

    return GATES.setdefault(name, Event())


class Turn:
    """``await Turn()`` means: again, next turn."""

    def __await__(self):
        yield


async def read_body(receive):
    """Return the whole request body, None when the client left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


TURNING = set()


async def respond(send, body=b"", status=200, headers=()):
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def attempt(send, message):
    """Send and return the name of the exception, "" when there was none."""
    try:
        await send(message)
    except Exception as exc:
        return type(exc).__name__
    return ""


@route
async def not_found(scope, receive, send):
    await respond(send, b"no such app", 404)


@route
async def hello(scope, receive, send):
    await respond(send, b"hello", headers=[(b"content-type", b"text/plain")])


@route
async def mark(scope, receive, send):
    """Write a line to the log, behind all that the server wrote so far."""
    note(scope, "is here")
    await respond(send)


@route
async def echo(scope, receive, send):
    """Answer with the body, once all of it is there."""
    body = await read_body(receive)
    if body is None:
        note(scope, "disconnected")
        return
    await respond(send, body)


@route
async def scope(scope, receive, send):
    """Answer with the scope, then change all of it: the next request must not see that."""
    await respond(send, repr(scope).encode())
    for value in scope.values():
        if isinstance(value, (dict, list)):
            value.clear()
    scope["headers"].append((b"x-left-over", b"1"))
    scope["asgi"]["left over"] = "1"


async def record(scope, receive, send):
    """Answer any request with what was read of it; an app of its own, whatever the path."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    body = await read_body(receive)
    seen = [scope[key] for key in ("method", "raw_path", "query_string", "headers")]
    await respond(send, repr((*seen, body)).encode())


async def record_scope(scope, receive, send):
    """Answer any request with its scope; an app of its own, whatever the path."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await respond(send, repr(scope).encode())


@route
async def messages(scope, receive, send):
    """Answer with every message received, up to the end of the body."""
    seen = []
    while not seen or seen[-1].get("more_body", False):
        seen.append(await receive())
    await respond(send, repr(seen).encode())


@route
async def streaming_messages(scope, receive, send):
    """Note every message as it comes, then answer."""
    while True:
        message = await receive()
        note(scope, repr(message))
        if not message.get("more_body", False):
            break
    if message["type"] == "http.request":
        await respond(send, b"done")


@route
async def wait_disconnect(scope, receive, send):
    """Read the body, note what comes behind it (twice), then try to answer, with both messages."""
    await read_body(receive)
    note(scope, "waiting")
    for _ in range(2):
        note(scope, repr(await receive()))
    start = {"type": "http.response.start", "status": 200, "headers": []}
    for message in (start, {"type": "http.response.body"}):
        try:
            await send(message)
            note(scope, "sent")
        except OSError as exc:
            note(scope, "OSError", type(exc).__name__)


@route
async def leave_uncaught(scope, receive, send):
    """Wait for the disconnect, then let the exception of send() escape."""
    await read_body(receive)
    note(scope, "waiting")
    await receive()
    note(scope, "disconnected")
    await respond(send, b"too late")


@route
async def leave_silently(scope, receive, send):
    """Wait for the disconnect and return without a response."""
    await read_body(receive)
    note(scope, "waiting")
    await receive()
    note(scope, "disconnected")


@route
async def after_response(scope, receive, send):
    """Answer without reading, then note what receive() says (twice)."""
    await respond(send, b"answered")
    for _ in range(2):
        note(scope, repr(await receive()))


@route
async def background(scope, receive, send):
    """Answer, then go on working until a gate opens."""
    await respond(send, b"answered")
    await gate(query(scope)["gate"]).wait()
    note(scope, "finished")


@route
async def open_gate(scope, receive, send):
    """Open a gate."""
    gate(query(scope)["gate"]).set()
    await respond(send, b"open")


@route
async def bug_after_disconnect(scope, receive, send):
    """Handle the exception of send() with a bug."""
    await read_body(receive)
    note(scope, "begun")
    await receive()
    try:
        await respond(send, b"too late")
    except OSError:
        undefined  # noqa: B018, F821


@route
async def gated(scope, receive, send):
    """Answer when the gate opens."""
    note(scope, "begun")
    await gate(query(scope)["gate"]).wait()
    await respond(send, scope["query_string"])


@route
async def with_finally(scope, receive, send):
    """Wait for what never comes, and note that ``finally`` runs."""
    note(scope, "begun")
    try:
        await gate(scope["query_string"]).wait()
    finally:
        note(scope, "finally")


@route
async def gated_stream(scope, receive, send):
    """Send one part, wait for the gate, send the other."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await gate(query(scope)["gate"]).wait()
    await send({"type": "http.response.body", "body": b"second", "more_body": False})


@route
async def head_first(scope, receive, send):
    """Send the head by an empty part, as for server-sent events, then wait for the gate."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-sse", b"1")]})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await gate(query(scope)["gate"]).wait()
    await send({"type": "http.response.body", "body": b"event", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@route
async def stream(scope, receive, send):
    """Send ``parts`` parts of ``size`` bytes, a turn between them; ``length=1`` declares it."""
    options = query(scope)
    parts, size = int(options.get("parts", 3)), int(options.get("size", 5))
    headers = [(b"content-length", b"%d" % (parts * size))] if options.get("length") else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(parts):
        part = bytes([97 + number % 26]) * size
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await Turn()
    await send({"type": "http.response.body"})


@route
async def endless(scope, receive, send):
    """Stream until send() raises, and note what it raised."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    sent = 0
    try:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 1
    except OSError as exc:
        note(scope, "OSError", type(exc).__name__)
        note(scope, repr(await receive()))
        raise


@route
async def big(scope, receive, send):
    """Answer with ``size`` bytes in one message."""
    await respond(send, b"x" * int(query(scope)["size"]))


@route
async def unread(scope, receive, send):
    """Answer without reading the body."""
    await respond(send, b"unread")


@route
async def read_once(scope, receive, send):
    """Read one message of the body, then answer."""
    message = await receive()
    await respond(send, b"read %d" % len(message.get("body", b"")))


@route
async def read_when_open(scope, receive, send):
    """Read the body only when the gate opens."""
    note(scope, "begun")
    await gate(query(scope)["gate"]).wait()
    body = await read_body(receive)
    await respond(send, b"none" if body is None else body)


@route
async def endless_turns(scope, receive, send):
    """Give up the turn again and again, until the app ``stop_turns`` is asked."""
    tag = scope["query_string"]
    TURNING.add(tag)
    note(scope, "turning")
    while tag in TURNING:
        await Turn()
    await respond(send, b"stopped")


@route
async def stop_turns(scope, receive, send):
    TURNING.discard(scope["query_string"])
    await respond(send)


# -- errors ---------------------------------------------------------------------------------------


@route
async def raise_before(scope, receive, send):
    raise ValueError("SECRET of the app")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@route
async def raise_unprintable(scope, receive, send):
    raise Unprintable


@route
async def raise_with_empty_scope(scope, receive, send):
    scope.clear()
    raise ValueError("SECRET of the app")


@route
async def return_with_empty_scope(scope, receive, send):
    scope.clear()


@route
async def raise_cancelled(scope, receive, send):
    """What an app that cancels its own work may let escape; nobody else has cancelled it."""
    from selectserve import Cancelled

    raise Cancelled


@route
async def read_with_empty_scope(scope, receive, send):
    note(scope, "begun")
    scope.clear()
    await respond(send, await read_body(receive))


@route
async def start_then_read(scope, receive, send):
    """Send the head, which is held back, before the body is read."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": await read_body(receive)})


@route
async def raise_after_start(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ValueError("SECRET of the app")


@route
async def raise_mid_body(scope, receive, send):
    headers = [(b"content-length", b"10")] if query(scope).get("length") else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    raise ValueError("SECRET of the app")


@route
async def raise_after_complete(scope, receive, send):
    await respond(send, b"complete")
    raise ValueError("SECRET of the app")


@route
async def raise_after_reading(scope, receive, send):
    await read_body(receive)
    raise ValueError("SECRET of the app")


@route
async def raise_system_exit(scope, receive, send):
    raise SystemExit(7)


@route
async def raise_generator_exit(scope, receive, send):
    await Turn()
    raise GeneratorExit


@route
async def raise_base_exception(scope, receive, send):
    class Strange(BaseException):
        pass

    raise Strange("SECRET of the app")


@route
async def return_before(scope, receive, send):
    return None


@route
async def return_after_start(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


@route
async def return_mid_body(scope, receive, send):
    headers = [(b"content-length", b"10")] if query(scope).get("length") else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})


@route
async def return_value(scope, receive, send):
    await respond(send, b"complete")
    return "a value"


@route
async def bad_yield(scope, receive, send):
    """Await something that the bridge cannot know; note what is thrown in."""

    class Strange:
        def __await__(self):
            yield {"what": "is this"}

    try:
        await Strange()
    except Exception as exc:
        note(scope, type(exc).__name__, exc)
        raise


# -- responses that test the writer --------------------------------------------------------------


@route
async def respond_with(scope, receive, send):
    """Answer as the query says: ``status``, ``body``, ``parts``, and ``h=name:value`` in %-code."""
    headers, body, parts, status = [], b"", 1, 200
    for item in scope["query_string"].split(b"&"):
        key, _, value = item.partition(b"=")
        value = unquote_to_bytes(value)
        if key == b"h":
            name, _, content = value.partition(b":")
            headers.append((name, content))
        elif key == b"status":
            status = int(value)
        elif key == b"body":
            body = value
        elif key == b"parts":
            parts = int(value)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for _ in range(parts - 1):
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": body})


@route
async def too_much(scope, receive, send):
    """Declare five bytes and send more, as ``parts`` says."""
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in query(scope)["parts"].split("|"):
        message = {"type": "http.response.body", "body": part.encode(), "more_body": True}
        note(scope, "raised", await attempt(send, message))
    note(scope, "raised", await attempt(send, {"type": "http.response.body"}))


@route
async def after_complete(scope, receive, send):
    """Send more after the last message."""
    await respond(send, b"complete")
    for message in (
        {"type": "http.response.body", "body": b"MORE", "more_body": True},
        {"type": "http.response.start", "status": 500, "headers": []},
        {"type": "http.response.body", "body": b"MORE"},
    ):
        note(scope, "raised", await attempt(send, message) or "nothing")


@route
async def wrong_messages(scope, receive, send):
    """Send what must raise, before and after the start; answer with what each raised."""
    raised = []
    start = {"type": "http.response.start", "status": 200, "headers": []}
    for message in (
        {"type": "http.response.body", "body": b"early"},
        {"type": "http.nonsense"},
        {"status": 200},
        {"type": "http.response.start"},
        {"type": "http.response.start", "status": "200"},
        {"type": "http.response.start", "status": 99},
        {"type": "http.response.start", "status": 1000},
        {**start, "headers": [("x-str", b"value")]},
        {**start, "headers": [(b"x-str", "value")]},
        {**start, "headers": [b"x-not-a-pair"]},
        {**start, "headers": [(b"x-three", b"1", b"2")]},
        {**start, "headers": [(b"bad name", b"value")]},
        {**start, "headers": [(b"", b"value")]},
        {**start, "headers": [(b"x-cr", b"a\rb")]},
        {**start, "headers": [(b"x-lf", b"a\nb")]},
        {**start, "headers": [(b"x-nul", b"a\0b")]},
        {**start, "headers": [(b"content-length", b"1"), (b"content-length", b"2")]},
        {**start, "headers": [(b"content-length", b"abc")]},
    ):
        raised.append(await attempt(send, message))
    await send({**start, "extra": 1, "headers": ([b"x-list", b"ok"] for _ in range(1))})
    raised.append(await attempt(send, start))
    raised.append(await attempt(send, {"type": "http.response.body", "body": "str"}))
    await send({"type": "http.response.body", "body": repr(raised).encode(), "extra": 1})


@route
async def defaults(scope, receive, send):
    """Send the shortest messages that are allowed."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


@route
async def enum_status(scope, receive, send):
    await respond(send, b"teapot", http.HTTPStatus.IM_A_TEAPOT)


@route
async def buffers(scope, receive, send):
    """Send a bytearray and a memoryview, and overwrite them afterwards."""
    body = bytearray(b"abc")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (body, memoryview(body)):
        if await attempt(send, {"type": "http.response.body", "body": part, "more_body": True}):
            await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
        body[:] = b"XYZ"
        await Turn()
        body[:] = b"def"
    await send({"type": "http.response.body"})


@route
async def context(scope, receive, send):
    """Set a context variable, give others a turn, and answer with what was and what is there."""
    before = NAME.get()
    NAME.set(scope["query_string"].decode())
    for _ in range(3):
        await Turn()
    await respond(send, repr((before, NAME.get())).encode())


@route
async def trailers(scope, receive, send):
    """Promise trailers and send them in two messages; ``length=1`` declares a length."""
    headers = [(b"content-length", b"3")] if query(scope).get("length") else []
    start = {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True}
    await send(start)
    await send({"type": "http.response.body", "body": b"abc"})
    fields = {"type": "http.response.trailers", "headers": [(b"x-one", b"1")]}
    await send({**fields, "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-two", b"2")]})


@route
async def early_hints(scope, receive, send):
    """Hint twice between the start and the body, and once behind it."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    for link in (b"</a.css>; rel=preload", b"</b.js>; rel=preload"):
        await send({"type": "http.response.early_hint", "links": [link]})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    await send({"type": "http.response.early_hint", "links": [b"</late>"]})
    await send({"type": "http.response.body", "body": b"end"})


# -- whole apps of other shapes, each for a server of its own --------------------------------------


class ClassApp:
    """An ASGI 2 app: called with the scope, then awaited with receive and send."""

    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        if self.scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        await respond(send, repr(("asgi2", self.scope["asgi"]["version"])).encode())


def double_function(scope):
    """An ASGI 2 app as a function."""
    return ClassApp(scope).__call__


class CallableInstance:
    """An ASGI 3 app as an instance."""

    async def __call__(self, scope, receive, send):
        await app(scope, receive, send)

    async def method(self, scope, receive, send):
        await app(scope, receive, send)


callable_instance = CallableInstance()
bound_method = callable_instance.method
partial_function = functools.partial(app)
partial_instance = functools.partial(callable_instance)
not_callable = 42


def plain_function(scope, receive, send):
    """A plain function that returns an awaitable."""
    return app(scope, receive, send)


@functools.wraps(app)
def wrapper(*args, **kwargs):
    """A plain function that stands for another, as decorators make it."""
    return app(*args, **kwargs)


class PlainInstance:
    """An ASGI 3 app as an instance whose call is not async."""

    def __call__(self, scope, receive, send, more=None):
        return app(scope, receive, send)


plain_instance = PlainInstance()
partial_wrapper = functools.partial(wrapper)
partial_named = functools.partial(plain_function)


@functools.wraps(app)
def wrapping_double_function(scope):
    """An ASGI 2 app, whatever it says that it stands for."""
    return ClassApp(scope).__call__


async def async_factory():
    return app


def make_app():
    """A factory."""
    return app


def failing_factory():
    raise RuntimeError("the factory failed")


def lifespan_app(behaviour):
    """Make an app whose lifespan behaves in a given way, and whose requests show the state."""

    async def lifespan(scope, receive, send):
        if scope["type"] == "http":
            if "state" in scope:
                scope["state"]["of the request"] = 1
                scope["state"].get("list", []).append(scope["path"])
            await respond(send, repr((scope.get("state"), NAME.get())).encode())
            return
        say("APP scope", repr({**scope, "state": dict(scope.get("state", {}))}))
        await behaviour(scope, receive, send)
        say("APP lifespan ended")

    return lifespan


async def well_behaved(scope, receive, send):
    say("APP message", await receive())
    scope["state"]["list"] = []
    scope["state"]["number"] = 1
    NAME.set("set in lifespan")
    await send({"type": "lifespan.startup.complete"})
    say("APP message", await receive())
    await send({"type": "lifespan.shutdown.complete"})


async def startup_fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database today"})
    raise RuntimeError("starlette raises behind it")


async def startup_fails_quietly(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed"})


async def raises_at_once(scope, receive, send):
    raise RuntimeError("what is a lifespan?")


async def raises_on_startup(scope, receive, send):
    await receive()
    raise RuntimeError("startup code broke")


async def exits_at_once(scope, receive, send):
    raise SystemExit(7)


async def exits_on_startup(scope, receive, send):
    await receive()
    await Turn()
    raise SystemExit(7)


async def interrupts_at_once(scope, receive, send):
    raise KeyboardInterrupt


async def interrupts_on_startup(scope, receive, send):
    await receive()
    await Turn()
    raise KeyboardInterrupt


async def returns_at_once(scope, receive, send):
    return


async def returns_after_startup(scope, receive, send):
    scope["state"]["from"] = "startup"
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def raises_after_startup(scope, receive, send):
    scope["state"]["from"] = "startup"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    for _ in range(3):
        await Turn()  # the server has begun to serve
    raise RuntimeError("broke while serving")


async def fails_after_startup(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await Turn()
    await send({"type": "lifespan.shutdown.failed", "message": "broke while serving"})


async def tells_and_raises_after_startup(scope, receive, send):
    try:
        await raises_after_startup(scope, receive, send)
    except RuntimeError as exc:
        await send({"type": "lifespan.shutdown.failed", "message": f"told: {exc}"})
        raise


async def shutdown_fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "could not save"})


async def raises_on_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    raise RuntimeError("shutdown code broke")


async def warns_and_raises_on_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.failed", "message": "it will break"})
    await receive()
    raise RuntimeError("shutdown code broke")


async def repeats_messages(scope, receive, send):
    await receive()
    raised = [await attempt(send, {"type": "lifespan.nonsense"})]
    await send({"type": "lifespan.startup.complete"})
    raised.append(await attempt(send, {"type": "lifespan.startup.complete"}))
    say("APP raised", raised)
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def lifespan_gated(scope, receive, send):
    """A lifespan, and requests that end when their body does."""
    if scope["type"] == "lifespan":
        say("APP message", await receive())
        await send({"type": "lifespan.startup.complete"})
        say("APP message", await receive())
        await send({"type": "lifespan.shutdown.complete"})
        return
    say("APP begun")
    await read_body(receive)
    await respond(send, b"ended")
    say("APP ended")


lifespan_well_behaved = lifespan_app(well_behaved)
lifespan_startup_fails = lifespan_app(startup_fails)
lifespan_startup_fails_quietly = lifespan_app(startup_fails_quietly)
lifespan_raises_at_once = lifespan_app(raises_at_once)
lifespan_raises_on_startup = lifespan_app(raises_on_startup)
lifespan_exits_at_once = lifespan_app(exits_at_once)
lifespan_exits_on_startup = lifespan_app(exits_on_startup)
lifespan_interrupts_at_once = lifespan_app(interrupts_at_once)
lifespan_interrupts_on_startup = lifespan_app(interrupts_on_startup)
lifespan_returns_at_once = lifespan_app(returns_at_once)
lifespan_returns_after_startup = lifespan_app(returns_after_startup)
lifespan_raises_after_startup = lifespan_app(raises_after_startup)
lifespan_fails_after_startup = lifespan_app(fails_after_startup)
lifespan_tells_and_raises_after_startup = lifespan_app(tells_and_raises_after_startup)
lifespan_shutdown_fails = lifespan_app(shutdown_fails)
lifespan_raises_on_shutdown = lifespan_app(raises_on_shutdown)
lifespan_warns_and_raises_on_shutdown = lifespan_app(warns_and_raises_on_shutdown)
lifespan_repeats_messages = lifespan_app(repeats_messages)
