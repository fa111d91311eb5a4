"""The deadlines table, row by row: with a clock that obeys, and with a real slow client.

The first half runs the whole server in the simulation's exact world, where only waiting takes
time, so that a deadline is seen to the hundredth of a second. The second half does the same to a
real process with short options. (A real client that is slow in the TLS handshake is in test_tls.)
"""

from __future__ import annotations

import re
import signal
import socket

import pytest

from selectserve.errors import Cancelled
from selectserve.reactor import NEVER
from selectserve.task import sleep

from .simulation.world import Link, World
from .support import RawClient

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"


class Visitor:
    """A client with a script: a generator that yields seconds to wait; it reads at once."""

    def __init__(self, world, script, capacity=1 << 20):
        self.world = world
        self.script = script(self)
        self.capacity = capacity
        self.link = None
        self.received = b""
        self.ended_at = None  # when the server had ended its side
        self.reads = True

    @property
    def now(self):
        """Seconds since the beginning."""
        return self.world.clock.now - 1000.0

    def step(self):
        """Go on with the script."""
        delay = next(self.script, None)
        if delay is not None:
            self.world.later(delay, self.step)

    def connect(self):
        """Begin the connection."""
        self.link = Link(self.world, self.capacity)
        self.link.on_outbound = self.read
        self.world.gate.backlog.append(self.link)

    def say(self, data):
        """Send bytes."""
        self.link.say(data)

    def read(self):
        """Take what has come."""
        link = self.link
        if self.reads:
            self.received += link.take(1 << 30)
        if self.ended_at is None and (link.server_ended or link.lost):
            self.ended_at = self.now

    def drip(self, data, pause):
        """Say ``data`` byte by byte, as long as anybody listens."""
        for at in range(len(data)):
            if self.ended_at is not None:
                return
            self.say(data[at : at + 1])
            yield pause

    @property
    def statuses(self):
        """Return the statuses that were received."""
        return [int(digits) for digits in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", self.received)]


class Stage:
    """A server in an exact world, an app, visitors, and a signal when all is over."""

    def __init__(self, app, **options):
        self.world = World(0, 0, app, {"lifespan": "off", **options}, exact=True)
        self.world.when_still = self.end
        self.visitors = []
        self.signalled_at = None

    @property
    def now(self):
        """Seconds since the beginning."""
        return self.world.clock.now - 1000.0

    def end(self):
        """Nothing will happen any more: stop the server."""
        if self.signalled_at is not None:
            return False
        self.signal()
        return True

    def signal(self):
        """Tell the server to stop."""
        self.signalled_at = self.now
        self.world.signal(signal.SIGTERM)

    def visit(self, script, **options):
        """Add a visitor, who begins at once."""
        visitor = Visitor(self.world, script, **options)
        self.visitors.append(visitor)
        self.world.later(0, visitor.step)
        return visitor

    def visit_and_signal(self, words):
        """Add a visitor who says ``words``; a second later the server is told to stop."""

        def script(visitor):
            visitor.connect()
            visitor.say(words)
            yield 1.0
            self.signal()

        return self.visit(script)

    def play(self):
        """Let it all happen; return the exit code."""
        code = self.world.play()
        assert [plug for plug in self.world.plugs if not plug.closed] == []
        assert not self.world.service.connections and not self.world.server.entrance.pending
        return code


def about(seconds):
    """Compare moments: exact but for floats."""
    return pytest.approx(seconds, abs=0.01)


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def silent(visitor):
    """Connect and say nothing."""
    visitor.connect()
    yield 0


class App:
    """Reads the body, then answers; ``log`` is what it was told, and when."""

    def __init__(self):
        self.log = []
        self.stage = None

    def note(self, word):
        self.log.append((word, round(self.stage.now, 2)))

    async def __call__(self, scope, receive, send):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.note("disconnect")
                return
            more = message["more_body"]
        self.note("body")
        await hello(scope, receive, send)


@pytest.fixture
def reader():
    """Make a stage for an app that reads the body and notes what it is told."""

    def make(**options):
        app = App()
        app.stage = Stage(app, **options)
        return app, app.stage

    return make


# -- first byte, or next request on a kept connection: --timeout-keep-alive (5 s), then close ------


@pytest.mark.parametrize(
    ("options", "seconds"), [({}, 5.0), ({"timeout_keep_alive": 0.5}, 0.5)], ids=["5", "0.5"]
)
def test_who_says_nothing_is_closed_without_a_word(options, seconds):
    stage = Stage(hello, **options)
    visitor = stage.visit(silent)
    stage.play()
    assert (visitor.ended_at, visitor.received) == (about(seconds), b"")


def test_a_kept_connection_has_its_time_from_the_last_answer_on():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        for _ in range(3):
            yield 4.0
            visitor.say(GET)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200] * 3, about(12 + 5))


def test_empty_lines_are_no_request():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        yield 4.0
        visitor.say(b"\r\n")

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.ended_at, visitor.received) == (about(5), b"")


@pytest.mark.parametrize("cut", [1, 10, len(GET) - 1])
def test_a_byte_that_came_in_time_is_not_thrown_away(cut):
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        yield 4.99
        visitor.say(GET[:cut])
        yield 10
        visitor.say(GET[cut:])

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(14.99 + 5))


def test_a_request_that_comes_in_the_very_moment_is_answered():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        yield 5.0
        visitor.say(GET)

    visitor = stage.visit(script)
    stage.play()
    assert visitor.statuses == [200]


def test_an_answer_that_is_being_read_is_not_idle_time():
    """A slow download is no reason to close the connection behind it."""

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000})

    stage = Stage(large)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        for _ in range(12):
            yield 2.0
            visitor.received += visitor.link.take(5000)
        visitor.reads = True
        visitor.read()
        yield 1.0
        visitor.say(GET)

    visitor = stage.visit(script, capacity=5000)
    stage.play()
    assert visitor.statuses == [200, 200]
    assert visitor.ended_at > 24


def test_keeping_alive_costs_no_heap_operation_per_request():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        for _ in range(1000):
            visitor.say(GET)
            yield 0.01

    reactor = stage.world.reactor
    visitor = stage.visit(script)
    stage.play()
    assert len(visitor.statuses) == 1000
    assert next(reactor.timer_numbers) < 30, "a timer for each request"


# -- the rest of the head: --timeout-header (15 s), then 408 and close -----------------------------


@pytest.mark.parametrize("options", [{}, {"timeout_header": 2.5}], ids=["15", "2.5"])
@pytest.mark.parametrize("cut", [1, 14, 20, len(GET) - 1])
def test_half_a_head_is_answered_with_408(options, cut):
    seconds = options.get("timeout_header", 15.0)
    stage = Stage(hello, **options)

    def script(visitor):
        visitor.connect()
        yield 1.0
        visitor.say(GET[:cut])

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([408], about(1 + seconds))
    assert b"\r\nconnection: close\r\n" in visitor.received


def test_a_dripping_head_has_no_more_time():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        yield from visitor.drip(b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a: b\r\n" * 50, 1.0)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([408], about(15))


def test_a_dripping_head_that_ends_in_time_is_served():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        yield from visitor.drip(GET, 14.0 / len(GET))

    visitor = stage.visit(script)
    stage.play()
    assert visitor.statuses == [200]


def test_each_head_on_a_kept_connection_has_its_own_time():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        for _ in range(3):
            visitor.say(GET[:5])
            yield 14.0
            visitor.say(GET[5:])
        visitor.say(GET[:5])

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200] * 3 + [408], about(42 + 15))


def test_what_is_left_of_a_body_is_not_waited_for_as_if_it_were_a_head():
    """The answer is complete: there is nothing left to refuse with a 408."""
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 100 + b"half of it")
        yield 0

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(5))


def test_a_discarded_body_leaves_a_connection_that_is_idle():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 20 + b"half of it")
        yield 1.0
        visitor.say(b"the other.")

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(1 + 5))


# -- body progress: --timeout-body (30 s), then 408 and http.disconnect ----------------------------


@pytest.mark.parametrize("options", [{}, {"timeout_body": 3.0}], ids=["30", "3"])
@pytest.mark.parametrize("said", [0, 1, 500, 5000])
def test_a_body_that_stops_is_answered_with_408(reader, options, said):
    seconds = options.get("timeout_body", 30.0)
    app, stage = reader(**options)

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 10_000)
        yield 1.0
        visitor.say(b"x" * said)

    visitor = stage.visit(script)
    stage.play()
    # only what is enough to be called progress moves the deadline
    end = seconds + (1 if said >= 1024 else 0)
    assert (visitor.statuses, visitor.ended_at) == ([408], about(end))
    assert app.log == [("disconnect", about(end))]


def test_a_dripping_body_is_no_progress(reader):
    app, stage = reader()

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 10_000)
        yield from visitor.drip(b"x" * 10_000, 0.5)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([408], about(30))
    assert app.log == [("disconnect", 30.0)]


def test_a_slow_body_that_makes_progress_has_all_the_time_it_needs(reader):
    app, stage = reader()

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 20_480)
        for _ in range(20):
            yield 25.0
            visitor.say(b"x" * 1024)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, app.log) == ([200], [("body", 500.0)])


def test_chunks_are_bytes_like_others(reader):
    app, stage = reader()

    def script(visitor):
        visitor.connect()
        visitor.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        yield from visitor.drip(b"1\r\nx\r\n" * 1000, 0.1)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([408], about(30))


def test_while_the_app_does_not_take_the_body_the_client_is_not_to_blame():
    async def sleeper(scope, receive, send):
        await sleep(1000)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await hello(scope, receive, send)

    stage = Stage(sleeper)

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 500_000 + b"x" * 500_000)
        yield 0

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(1005))


def test_who_waits_for_a_100_is_waited_for_only_after_it():
    stage = None

    async def late(scope, receive, send):
        await sleep(100)
        await receive()

    stage = Stage(late)

    def script(visitor):
        visitor.connect()
        visitor.say(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        yield 0

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([100, 408], about(130))


def test_an_answer_that_has_begun_is_cut_instead():
    told = []

    async def streams(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        told.append((await receive())["type"])
        told.append((await receive())["type"])

    stage = Stage(streams)

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 100 + b"half of it")
        yield 0

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(30))
    assert visitor.received.endswith(b"4\r\npart\r\n"), "a cut must not look like an end"
    assert told == ["http.request", "http.disconnect"]


# -- a client that reads nothing: --timeout-write (60 s), then abort; send() raises ----------------


def streamer(log):
    """Return an app that streams for ever and notes what stops it."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 30_000, "more_body": True})
        except OSError:
            log.append((await receive())["type"])
            raise

    return app


@pytest.mark.parametrize("options", [{}, {"timeout_write": 7.0}], ids=["60", "7"])
def test_who_reads_nothing_is_reset(options):
    log = []
    stage = Stage(streamer(log), **options)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        yield 0

    visitor = stage.visit(script, capacity=10_000)
    stage.play()
    assert visitor.ended_at == about(options.get("timeout_write", 60.0))
    assert visitor.link.lost and visitor.link.hard
    assert log == ["http.disconnect"]


def test_who_reads_in_a_dribble_is_reset_all_the_same():
    log = []
    stage = Stage(streamer(log))

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        while visitor.ended_at is None:
            yield 1.0
            visitor.link.take(50)

    visitor = stage.visit(script, capacity=10_000)
    stage.play()
    assert visitor.ended_at == about(60)
    assert log == ["http.disconnect"]


def test_who_reads_slowly_but_reads_is_waited_for():
    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    stage = Stage(large)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        while len(visitor.received) < 100_000:
            yield 50.0
            visitor.received += visitor.link.take(4200)

    visitor = stage.visit(script, capacity=10_000)
    stage.play()
    assert visitor.received.count(b"x") == 100_000
    assert stage.now > 1000


def test_an_error_answer_nobody_reads_has_the_same_deadline():
    stage = Stage(hello, timeout_write=7.0)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(b"nonsense\r\n\r\n")
        yield 0

    visitor = stage.visit(script, capacity=20)
    stage.play()
    assert visitor.ended_at == about(7)


def test_the_lingering_close_has_a_deadline_too():
    """After an error the client has two seconds to read it and to go."""
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(b"nonsense\r\n\r\n")
        while not visitor.link.closed:
            visitor.say(b"more of it")
            yield 0.1
        stage.closed_at = stage.now

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([400], about(0))
    assert stage.closed_at == pytest.approx(2.0, abs=0.11)


# -- TLS handshake and PROXY header: --timeout-handshake (15 s), then close ------------------------


def make_context(_config, _default):
    """Return a TLS context without a certificate: no handshake will get that far."""
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.mark.parametrize(
    "options",
    [
        {"ssl_context_factory": make_context},
        {"proxy_protocol": True, "forwarded_allow_ips": "127.0.0.1"},
    ],
    ids=["tls", "proxy"],
)
@pytest.mark.parametrize("seconds", [15.0, 1.5])
@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_who_does_not_get_through_is_closed(options, seconds, drips):
    if seconds != 15.0:
        options = {**options, "timeout_handshake": seconds}
    stage = Stage(hello, **options)
    hello_record = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    said = (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80" if "proxy_protocol" in options else hello_record
    )

    def script(visitor):
        visitor.connect()
        yield 0
        if drips:
            yield from visitor.drip(said, 0.5)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.ended_at, visitor.received) == (about(seconds), b"")


# -- drain at shutdown: --timeout-graceful-shutdown (10 s) -----------------------------------------


@pytest.mark.parametrize("seconds", [10.0, 4.0])
def test_who_does_not_end_is_cancelled_at_the_end_of_the_drain(seconds):
    log = []

    async def stuck(scope, receive, send):
        try:
            await sleep(1e6)
        except Cancelled:
            log.append(round(stage.now, 1))
            raise

    stage = Stage(stuck, timeout_graceful_shutdown=seconds)

    visitor = stage.visit_and_signal(GET)
    assert stage.play() == 0
    assert log == [about(1 + seconds)] or log == [round(1 + seconds + 0.05, 1)]
    assert visitor.statuses == [503]
    assert stage.now < 1 + seconds + 3


def test_streams_are_told_when_half_of_the_drain_is_over():
    log = []
    stage = Stage(None)

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"event", "more_body": True})
                await sleep(0.5)
        except OSError:
            log.append(round(stage.now, 1))
            raise

    stage = Stage(stream)

    visitor = stage.visit_and_signal(GET)
    assert stage.play() == 0
    assert 6 <= log[0] <= 6.6
    assert not visitor.received.endswith(b"0\r\n\r\n")
    assert stage.now < 10


# -- a stream that nobody listens to: 5 s to notice it, then it is cancelled -----------------------


@pytest.mark.parametrize("notices", ["nothing", "send", "receive", "returns"])
def test_a_stream_whose_client_left_does_not_wait_for_ever(notices):
    log = []
    stage = Stage(None)

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        try:
            await sleep(1.5)
            if notices == "send":
                with pytest.raises(OSError):
                    await send({"type": "http.response.body", "body": b"event", "more_body": True})
            elif notices == "receive":
                assert (await receive())["type"] == "http.disconnect"
            elif notices == "returns":
                return
            await sleep(100)
        finally:
            log.append(round(stage.now, 1))

    stage = Stage(stream)

    def script(visitor):
        visitor.connect()
        visitor.say(GET)
        yield 1.0
        visitor.link.reset()
        yield 150.0
        stage.signal()

    stage.visit(script)
    assert stage.play() == 0
    assert log == [{"nothing": about(3), "returns": about(1.5)}.get(notices, about(101.5))]


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLOSE_1012 = b"\x88\x02\x03\xf4"


@pytest.fixture
def echo():
    """Make a stage for an app that echoes WebSocket messages and notes its end."""

    def make(**options):
        log = []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    log.append((message["code"], round(stage.now, 1)))
                    return
                if message["text"] == "fail":
                    raise ZeroDivisionError
                if message["text"] == "return":
                    return
                await send({"type": "websocket.send", "text": message["text"]})

        stage = Stage(app, **options)
        return log, stage

    return make


@pytest.mark.parametrize("seconds", [10.0, 4.0])
def test_websockets_go_on_until_half_of_the_drain_is_over(echo, seconds):
    log, stage = echo(timeout_graceful_shutdown=seconds)

    def script(visitor):
        visitor.connect()
        visitor.say(UPGRADE)
        yield 1.0
        stage.signal()
        yield seconds / 2 - 0.1
        visitor.say(b"\x81\x82\0\0\0\0hi")
        yield 0.05
        assert visitor.received.endswith(b"\r\n\r\n\x81\x02hi")
        yield 0.06
        assert visitor.received.endswith(b"\x81\x02hi" + CLOSE_1012)
        visitor.say(b"\x88\x82\0\0\0\0\x03\xf4")

    visitor = stage.visit(script)
    assert stage.play() == 0
    assert log == [(1012, 1 + seconds / 2)]
    assert visitor.ended_at == about(1 + seconds / 2 + 0.01)


def test_a_websocket_that_does_not_answer_1012_has_the_rest_of_the_drain(echo):
    log, stage = echo()

    visitor = stage.visit_and_signal(UPGRADE)
    assert stage.play() == 0
    assert log == [(1012, 6.0)]
    assert visitor.received.endswith(CLOSE_1012)
    assert visitor.ended_at == about(11)


@pytest.mark.parametrize(
    ("said", "answer", "told"),
    [
        (b"\x88\x82\0\0\0\0\x03\xe8", b"\x88\x02\x03\xe8", [(1000, 3.0)]),
        (b"\x81\x86\0\0\0\0return", b"\x88\x02\x03\xe8", []),
        (b"\x81\x84\0\0\0\0fail", b"\x88\x02\x03\xf3", []),
    ],
    ids=["its client closes", "its app returns", "its app fails"],
)
def test_a_websocket_that_ends_in_time_is_not_disturbed(echo, said, answer, told):
    """Its code is what it would be at any time, and nobody waits any longer."""
    log, stage = echo()

    def script(visitor):
        visitor.connect()
        visitor.say(UPGRADE)
        yield 1.0
        stage.signal()
        yield 2.0
        visitor.say(said)
        yield 0.1
        visitor.link.hang_up()

    visitor = stage.visit(script)
    assert stage.play() == 0
    assert (log, visitor.received[-4:]) == (told, answer)
    assert stage.now < 3.2


def test_a_second_signal_tells_the_websockets_at_once(echo):
    log, stage = echo()

    def script(visitor):
        visitor.connect()
        visitor.say(UPGRADE)
        yield 1.0
        stage.signal()
        yield 1.0
        assert log == []
        stage.signal()

    visitor = stage.visit(script)
    assert stage.play() == 0
    assert log == [(1012, 2.0)]
    assert visitor.received.endswith(CLOSE_1012)


def test_each_phase_of_a_shutdown_says_what_there_still_is(caplog):
    async def app(scope, receive, send):
        path = scope["path"]
        if path == "/socket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        if path == "/behind":
            await hello(scope, receive, send)
        await sleep({"/short": 3, "/behind": 7}.get(path, 1e6))
        await hello(scope, receive, send)

    stage = Stage(app)

    def asks(path):
        def script(visitor):
            visitor.connect()
            visitor.say((UPGRADE if "socket" in path else GET).replace(b"/ ", path.encode() + b" "))
            yield 0

        return script

    def reads_nothing(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(b"nonsense\r\n\r\n")
        yield 1.0
        stage.signal()

    for path in ("/long", "/short", "/socket", "/socket", "/behind"):
        stage.visit(asks(path))
    stage.visit(reads_nothing, capacity=20)
    with caplog.at_level("INFO", "selectserve.error"):
        assert stage.play() == 0
    told = [text.split(": ")[-1] for text in caplog.messages if "running" not in text]
    assert [text for text in told if "400" not in text] == [
        "2 requests (the oldest GET /long, 1.0 s), 2 WebSockets, 1 background call, "
        "1 other connection",
        "telling the long ones to end, of 1 request (the oldest GET /long, 6.0 s), 2 WebSockets, "
        "1 background call, 1 other connection",
        "cancelling 1 request (the oldest GET /long, 11.0 s), 3 other connections",
    ]


def test_a_websocket_alone_is_no_request_and_none_is_cancelled(echo, caplog):
    _log, stage = echo()

    stage.visit_and_signal(UPGRADE)
    with caplog.at_level("INFO", "selectserve.error"):
        assert stage.play() == 0
    assert caplog.messages[1:] == [
        "shutting down: listeners closed, to be finished: 1 WebSocket",
        "telling the long ones to end, of 1 WebSocket",
        "closing 1 connection",  # whose client has not answered 1012
    ]


def test_who_does_not_go_is_not_waited_for_long():
    """PR-13: at shutdown a client has its answer, and a second to read it; that is all."""

    async def app(scope, receive, send):
        await sleep(3)
        await hello(scope, receive, send)

    stage = Stage(app)
    visitor = stage.visit_and_signal(GET)
    assert stage.play() == 0
    assert (visitor.statuses, visitor.ended_at) == ([200], about(3))
    assert stage.now == about(4)


def test_a_server_without_work_says_so(caplog):
    stage = Stage(hello)
    with caplog.at_level("INFO", "selectserve.error"):
        assert stage.play() == 0
    assert caplog.messages[1:] == ["shutting down: listeners closed, to be finished: nothing"]


def test_a_long_poll_is_told_too_and_may_answer():
    log = []

    async def poll(scope, receive, send):
        await receive()
        log.append(((await receive())["type"], round(stage.now, 1)))

    stage = Stage(poll)

    visitor = stage.visit_and_signal(GET)
    assert stage.play() == 0
    assert log == [("http.disconnect", 6.0)]
    assert visitor.statuses == [503]


@pytest.mark.parametrize("seconds", [0.5, 4.0, 7.0, 9.9])
def test_who_ends_in_time_is_not_disturbed(seconds):
    async def slow(scope, receive, send):
        await sleep(1 + seconds)
        await hello(scope, receive, send)

    stage = Stage(slow)

    visitor = stage.visit_and_signal(GET)
    assert stage.play() == 0
    assert (visitor.statuses, visitor.ended_at) == ([200], about(1 + seconds))
    assert b"\r\nconnection: close\r\n" in visitor.received
    assert visitor.received.endswith(b"hello")


def test_the_port_is_closed_and_the_idle_are_sent_away_in_the_first_moment():
    async def slow(scope, receive, send):
        if scope["path"] == "/slow":
            await sleep(5)
        await hello(scope, receive, send)

    stage = Stage(slow)

    def busy(visitor):
        visitor.connect()
        visitor.say(GET.replace(b"/ ", b"/slow "))
        yield 1.0
        stage.signal()
        yield 0.01
        assert not stage.world.gate.listening

    def idle(visitor):
        visitor.connect()
        visitor.say(GET)
        yield 0

    first, second = stage.visit(busy), stage.visit(idle)
    assert stage.play() == 0
    assert (first.statuses, first.ended_at) == ([200], about(5))
    assert (second.statuses, second.ended_at) == ([200], about(1))


def test_a_second_signal_skips_the_drain_and_not_the_lifespan():
    log = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await sleep(1)
            log.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await sleep(1e6)
        finally:
            log.append("cancelled")

    stage = Stage(app, lifespan="on", timeout_graceful_shutdown=1000.0)

    def script(visitor):
        visitor.connect()
        visitor.say(GET)
        yield 1.0
        stage.signal()
        yield 1.0
        stage.signal()

    stage.visit(script)
    assert stage.play() == 0
    assert log == ["cancelled", "shutdown"]
    assert stage.now < 6


# -- lifespan startup and shutdown: --timeout-lifespan (60 s), then exit 3 with a clear line -------


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
@pytest.mark.parametrize("options", [{}, {"timeout_lifespan": 3.0}], ids=["60", "3"])
def test_a_lifespan_that_hangs_is_given_up(phase, options, caplog):
    seconds = options.get("timeout_lifespan", 60.0)
    log = []

    async def app(scope, receive, send):
        await receive()
        if phase == "shutdown":
            await send({"type": "lifespan.startup.complete"})
            await receive()
        try:
            await sleep(1e6)
        finally:
            await sleep(0.5)
            log.append("cleaned up")

    stage = Stage(app, lifespan="on", **options)
    with caplog.at_level("ERROR", "selectserve.error"):
        assert stage.play() == 3
    begun = 0 if phase == "startup" else stage.signalled_at
    assert stage.now - begun == about(seconds + 0.5)
    assert log == ["cleaned up"]
    (record,) = caplog.records
    assert f"lifespan {phase} " in record.getMessage()


def test_the_first_signal_interrupts_a_start_that_hangs(caplog):
    log = []

    async def app(scope, receive, send):
        try:
            await receive()
            await sleep(1e6)
        finally:
            log.append("cleaned up")

    stage = Stage(app, lifespan="on")
    stage.world.later(2.0, stage.signal)
    assert stage.play() == 0
    assert stage.now == about(2)
    assert (log, caplog.records) == (["cleaned up"], [])
    assert not stage.world.gate.was_opened


# -- the clock of a connection is never without a hand ---------------------------------------------


def test_time_that_jumps_is_no_new_time():
    """A machine that was suspended does not give every client its time again."""
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(GET[:5])
        yield 1.0
        stage.world.clock.now += 5000

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([408], about(5001))


def test_options_of_zero_seconds_end_at_once_and_do_not_spin():
    stage = Stage(hello, timeout_keep_alive=0.0, timeout_header=0.0)
    visitor = stage.visit(silent)
    stage.play()
    assert (visitor.ended_at, stage.now) == (about(0), about(0))
    assert stage.world.turns < 20
    assert all(at != NEVER for at, _, _ in stage.world.last_timers)


# -- a real process, and a client that is really slow ----------------------------------------------


def test_really_silent(serve):
    server = serve("tests.apps:app", "--timeout-keep-alive", "1")
    with server.connect() as client:
        assert client.read_until_close() == b""
    with server.connect() as client:
        assert client.get("/hello").status == 200
        assert client.read_until_close() == b""


def test_a_head_that_really_drips(serve):
    server = serve("tests.apps:app", "--timeout-header", "0.5")
    with server.connect() as client:
        drip(client, b"GET /hello HTTP/1.1\r\n" + b"a: b\r\n" * 1000)
        response = client.read_response()
        assert (response.status, response.get("connection")) == (408, b"close")
        assert client.is_closed()


def test_a_body_that_really_drips(serve):
    server = serve("tests.apps:app", "--timeout-body", "0.5")
    with server.connect() as client:
        client.send(b"POST /echo?tag HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        drip(client, b"x" * 10_000)
        assert client.read_response().status == 408
        assert client.is_closed()
    server.wait_for_log("APP tag disconnected")


def drip(client: RawClient, data: bytes) -> None:
    """Send a byte every 20 ms until the server has had enough."""
    client.socket.settimeout(0.02)
    for at in range(len(data)):
        client.socket.sendall(data[at : at + 1])
        try:
            client.buffer += client.socket.recv(65536)
            return
        except socket.timeout:
            pass
    raise AssertionError("it went on for ever")


def test_a_client_that_really_reads_nothing(serve):
    server = serve("tests.apps:app", "--timeout-write", "0.5")
    with server.connect(receive_buffer=4096) as client:
        client.request("GET", "/endless?tag")
        server.wait_for_log("APP tag OSError ClientDisconnected")
        server.wait_for_log("APP tag .*http.disconnect")
        with pytest.raises(ConnectionResetError):
            client.read_until_close()


def test_a_drain_that_really_ends(serve):
    server = serve("tests.apps:app", "--timeout-graceful-shutdown", "0.6")
    with server.connect() as client:
        client.request("GET", "/gated?gate=never")
        server.wait_for_log("begun")
        server.send_signal(signal.SIGTERM)
        assert client.read_response().status == 503
        assert client.is_closed()
    assert server.wait() == 0


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
def test_a_lifespan_that_really_hangs(phase):
    from .support import Server, run_server

    command = f"tests.attack_apps:hangs_at_{phase}", "--timeout-lifespan", "0.3", "--lifespan", "on"
    if phase == "startup":
        done = run_server(*command, "--port", "0")
        assert done.returncode == 3
        assert "lifespan startup " in done.stderr and "Traceback" not in done.stderr
        return
    with Server(*command) as server:
        assert server.stop() == 3
        server.wait_for_log("lifespan shutdown ")
