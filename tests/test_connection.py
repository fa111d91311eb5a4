"""What a connection decides between its client and the app, in an exact world.

The whole server, a clock that stands still, and clients that say exactly what is written here;
what must hold for every conversation is in the simulation.
"""

from __future__ import annotations

import copy
import os
import re
import socket
from email.utils import parsedate_to_datetime

import pytest

from selectserve.connection import PIPELINE_WATERMARK
from selectserve.filesend import FileSend
from selectserve.task import sleep
from selectserve.transport import HIGH_WATERMARK, READ_SIZE, Transport

from .test_deadlines import GET, POST, Stage, about, hello

HEAD = GET.replace(b"GET", b"HEAD")


def watch(stage, measure):
    """Return a list that grows by ``measure(connection)`` for each connection and turn."""
    seen = []
    stage.world.before_wait = lambda: seen.extend(map(measure, stage.world.service.connections))
    return seen


def play(stage, words):
    """Return a visitor who has said ``words``, and no more, to the end of what came of it."""

    def script(visitor):
        visitor.connect()
        visitor.say(words)
        yield 0

    visitor = stage.visit(script)
    stage.play()
    return visitor


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0, 0.01], ids=["at once", "after a moment"])
def test_what_is_pipelined_ahead_is_bounded(pause):
    """Also while the app goes on answering: each answer is no reason to read more than it took."""

    async def app(scope, receive, send):
        if pause:
            await sleep(pause)
        await hello(scope, receive, send)

    stage = Stage(app)
    buffered = watch(stage, lambda connection: connection.parser.buffered)
    count = 10_000

    def script(visitor):
        visitor.connect()
        visitor.say(GET * count)
        yield 1000.0

    visitor = stage.visit(script)
    stage.play()
    assert len(visitor.statuses) == count
    assert max(buffered) > PIPELINE_WATERMARK / 2, "it reads ahead"
    assert max(buffered) <= PIPELINE_WATERMARK + 2 * READ_SIZE


def test_answers_that_nobody_reads_do_not_pile_up():
    """Each of two thousand pipelined requests wants a large answer, in one message."""
    size = 100_000

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    stage = Stage(app, timeout_write=5.0)
    unsent = watch(stage, lambda connection: connection.transport.out_size)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET * 2000)
        yield 0

    stage.visit(script, capacity=1000)
    stage.play()
    assert 0 < max(unsent) <= HIGH_WATERMARK + size + 1000


def test_a_body_nobody_takes_in_the_tiniest_chunks_is_bounded():
    async def app(scope, receive, send):
        await sleep(10)
        while (await receive()).get("more_body"):
            pass
        await hello(scope, receive, send)

    stage = Stage(app)
    pieces = watch(stage, lambda one: len(one.cycle.pieces or ()) if one.cycle else 0)

    def script(visitor):
        visitor.connect()
        visitor.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        visitor.say(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
        yield 0

    visitor = stage.visit(script)
    stage.play()
    assert visitor.statuses == [200]
    assert 0 < max(pieces) < 10_000


# -- answers ---------------------------------------------------------------------------------------


def test_the_date_is_of_the_answer():
    """RFC 9110 §6.6.1: a slow answer is no older than it is; what caches reckon depends on it."""

    async def app(scope, receive, send):
        await sleep(90)
        await hello(scope, receive, send)

    stage = Stage(app)
    began = stage.world.wall_clock()
    visitor = play(stage, GET)
    date = re.search(rb"date: (.*)\r\n", visitor.received)[1].decode()
    assert parsedate_to_datetime(date).timestamp() == int(began + 90)


@pytest.mark.parametrize("dated", [True, False])
def test_each_answer_has_the_fields_of_the_server(dated):
    stage = Stage(hello, date_header=dated, header=[("X-Own", "this")])
    visitor = play(stage, GET * 3)
    answers = visitor.received.split(b"hello")
    assert answers[0] == answers[1] == answers[2] and answers[3] == b""
    assert b"server: selectserve\r\n" in answers[0] and b"X-Own: this\r\n" in answers[0]
    assert (b"date: " in answers[0]) == dated


def spoil(value):
    """Change all that can be changed in an app's scope."""
    if isinstance(value, dict):
        for part in value.values():
            spoil(part)
        value["spoilt"] = True
    elif isinstance(value, list):
        value.append((b"spoilt", b"yes"))


@pytest.mark.parametrize("options", [{}, {"root_path": "/mount"}, {"trace": True}], ids=repr)
def test_a_request_that_comes_again_has_a_scope_of_its_own(options):
    seen = []

    async def app(scope, receive, send):
        seen.append(copy.deepcopy(scope))
        await hello(scope, receive, send)
        spoil(scope)

    stage = Stage(app, **options)
    stage.world.service.state = {"of": "the lifespan"}
    play(stage, GET * 6 + GET.replace(b"/", b"/other", 1) + GET * 2)
    other = seen.pop(6)
    assert other["path"] != seen[0]["path"] and len(seen) == 8
    assert all(scope == seen[0] for scope in seen)
    assert set(seen[0]) == set(other) and "spoilt" not in str(seen)


def test_a_refusal_has_the_id_that_the_app_was_told():
    told = []

    async def app(scope, receive, send):
        told.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        while (await receive()).get("more_body"):
            pass

    visitor = play(Stage(app, request_id=True), POST % 5 + b"ab")
    assert visitor.statuses == [408] and len(told) == 1
    assert b"\r\nx-request-id: %b\r\n" % told[0] in visitor.received


# -- a head whose body does not come soon ----------------------------------------------------------


def look(stage, words, moments):
    """Return a visitor who has said ``words``, and what it had received at each of ``moments``."""
    seen = []

    def script(visitor):
        visitor.connect()
        visitor.say(words)
        last = 0.0
        for moment in moments:
            yield moment - last
            seen.append(visitor.received)
            last = moment

    visitor = stage.visit(script)
    stage.play()
    return visitor, seen


def slow_stream(*headers, before=0.0, body=b"an event", **message):
    """Return an app that begins an answer, and has nothing to add for a while."""

    async def app(scope, receive, send):
        if before:
            await sleep(before)
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send({**start, **message})
        await sleep(20)
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize("before", [0, 1], ids=["in the first step", "later"])
def test_the_head_of_a_silent_stream_leaves_soon(before):
    app = slow_stream((b"content-type", b"text/event-stream"), before=before)
    visitor, seen = look(Stage(app), GET, [before + 0.09, before + 0.11, before + 19])
    assert seen[0] == b"" and seen[1] == seen[2]
    assert seen[1].startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    assert seen[1].endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n")
    assert visitor.received[len(seen[1]) :] == b"8\r\nan event\r\n0\r\n\r\n"


def test_a_head_that_tells_the_length_waits_for_the_body():
    visitor, seen = look(Stage(slow_stream((b"content-length", b"8"))), GET, [19])
    assert seen == [b""] and visitor.received.endswith(b"\r\n\r\nan event")


@pytest.mark.parametrize(
    ("words", "end", "body"),
    [
        (GET.replace(b"1.1", b"1.0"), b"connection: close\r\n\r\n", b"an event"),
        (HEAD, b"transfer-encoding: chunked\r\n\r\n", b""),
    ],
    ids=["1.0", "HEAD"],
)
def test_whatever_the_head_says_of_the_body_is_kept(words, end, body):
    visitor, seen = look(Stage(slow_stream()), words, [1])
    assert seen[0].endswith(end) and visitor.received == seen[0] + body


def test_trailers_may_follow_a_head_that_has_left():
    async def app(scope, receive, send):
        await slow_stream(trailers=True)(scope, receive, send)
        await send({"type": "http.response.trailers", "headers": [(b"sum", b"1")]})

    words = GET.replace(b"\r\n\r\n", b"\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
    visitor, seen = look(Stage(app), words, [1])
    assert visitor.received == seen[0] + b"8\r\nan event\r\n0\r\nsum: 1\r\n\r\n"


def test_a_file_may_follow_a_head_that_has_left(tmp_path, monkeypatch):
    # this world's sockets are not the kernel's, and its clock would not wait for a thread
    monkeypatch.setattr(Transport, "sends_files", False)
    monkeypatch.setattr(FileSend, "read_now", lambda file, size: os.pread(file.fd, size, 0))
    file = tmp_path / "file"
    file.write_bytes(b"the file")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await sleep(20)
        await send({"type": "http.response.pathsend", "path": str(file)})

    visitor, seen = look(Stage(app), GET, [1])
    assert visitor.received == seen[0] + b"8\r\nthe file\r\n0\r\n\r\n"


@pytest.mark.parametrize("ends", ["raises", "returns"])
def test_an_app_that_fails_after_its_head_has_left_is_cut(ends):
    """There is no 500 any more: an end in the middle is what tells the client."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await sleep(20)
        if ends == "raises":
            raise ValueError("too late")

    visitor, seen = look(Stage(app), GET * 2, [1])
    assert visitor.received == seen[0] and visitor.ended_at == about(20)


@pytest.mark.parametrize("ends", ["raises", "answers"])
def test_an_app_whose_turn_comes_late_goes_before_its_head(ends):
    """Somebody has held the reactor for longer than a head waits: no reason to answer otherwise."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await sleep(0.01)
        if ends == "raises":
            raise ValueError("in time")
        await send({"type": "http.response.body", "body": b"hello"})

    stage = Stage(app)
    stage.world.later(0.005, lambda: setattr(stage.world.clock, "now", stage.world.clock.now + 1))
    visitor = play(stage, GET)
    assert visitor.statuses == [500 if ends == "raises" else 200]
    assert b"\r\ncontent-length: " in visitor.received


@pytest.mark.parametrize("left_at", [0.05, 1.0], ids=["before its head", "behind it"])
def test_who_leaves_a_silent_stream_ends_it(left_at):
    """Two seconds later, like one that has sent something: nothing else would ever wake it."""
    ended = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        try:
            await sleep(1000)
        finally:
            ended.append(stage.now)

    stage = Stage(app)

    def script(visitor):
        visitor.connect()
        visitor.say(GET)
        yield left_at
        visitor.link.reset()

    stage.visit(script)
    stage.play()
    assert ended == [about(left_at + 2)]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"GET  / HTTP/1.1\r\n\r\n", b"GET / HT"], ids=["bad", "late"])
def test_a_refusal_is_not_shaped_by_the_request_before(bad):
    """Behind a HEAD, too, it has a body."""
    visitor = play(Stage(hello), HEAD + bad)
    head, _, body = visitor.received.rpartition(b"\r\n\r\n")
    assert visitor.statuses[0] == 200 and visitor.statuses[1] in (400, 408)
    assert b"content-length: %d\r\n" % len(body) in head.rpartition(b"HTTP/1.1 ")[2]
    assert len(body) > 10


@pytest.mark.parametrize(
    "bad", [b"HEAD / HTTP/2.0\r\n\r\n", b"HEAD  / HTTP/1.1\r\n\r\n", b"HEAD / HT"]
)
def test_a_broken_head_is_refused_without_a_body(bad):
    visitor = play(Stage(hello), GET + bad)
    assert visitor.statuses[1] in (400, 408, 505)
    assert visitor.received.endswith(b"\r\n\r\n")


# -- who ends his side, and still reads ------------------------------------------------------------


@pytest.mark.parametrize("ends", [True, False])
def test_who_ends_his_side_in_a_stream_is_probed(ends):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await sleep(60)
        await send({"type": "http.response.body", "body": b"two"})

    stage = Stage(app)
    options = []

    def script(visitor):
        visitor.connect()
        visitor.link.setsockopt = lambda *option: options.append(option[:2])
        visitor.say(GET)
        yield 1.0
        if ends:
            visitor.link.end()
        yield 100.0

    visitor = stage.visit(script)
    stage.play()
    assert b"two" in visitor.received
    assert ((socket.SOL_SOCKET, socket.SO_KEEPALIVE) in options) is ends


# -- who waits for the client beside the one who answers -------------------------------------------


def park(receive):
    """Call ``receive`` as from a task of its own; return the call, and what it waits for."""
    beside = receive()
    return beside, beside.send(None)


def told(beside):
    """Return what such a call returns, once it is released."""
    with pytest.raises(StopIteration) as end:
        beside.send(None)
    return end.value.value


@pytest.mark.parametrize("way", ["cancels it", "waits for it", "asks, too", "leaves it behind"])
def test_a_receive_beside_the_answer_is_told_a_little_later(way):
    """Told at once it would raise in most apps, which cancel it when they have answered."""
    left = []

    async def app(scope, receive, send):
        await receive()
        beside, waiter = park(receive)
        left.append((beside, waiter))
        await hello(scope, receive, send)
        assert not waiter.released
        if way == "cancels it":
            beside.close()
        elif way == "waits for it":
            await waiter
        elif way == "asks, too":
            assert await receive() == {"type": "http.disconnect"}

    stage = Stage(app)
    assert play(stage, GET).statuses == [200]
    [(beside, waiter)] = left
    assert waiter.released is (way != "cancels it")
    if waiter.released:
        assert told(beside) == {"type": "http.disconnect"}


@pytest.mark.parametrize("way", ["returns", "raises", "begins"])
def test_a_receive_that_an_app_leaves_behind_unanswered_is_told(way):
    left = []

    async def app(scope, receive, send):
        await receive()
        left.append(park(receive))
        if way == "raises":
            raise ZeroDivisionError
        if way == "begins":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})

    play(Stage(app), GET)
    [(beside, waiter)] = left
    assert waiter.released
    assert told(beside) == {"type": "http.disconnect"}


def test_who_waits_for_the_end_beside_its_answer_does_not_fill_the_limit():
    """Its next request comes when it has been told."""

    async def app(scope, receive, send):
        await receive()
        beside, waiter = park(receive)
        await hello(scope, receive, send)
        await waiter
        beside.close()

    stage = Stage(app, limit_concurrency=1)

    def script(visitor):
        visitor.connect()
        for _ in range(20):
            visitor.say(GET)
            yield 0.001

    visitor = stage.visit(script)
    stage.play()
    assert visitor.statuses == [200] * 20


def test_who_was_refused_makes_room():
    """Though it may read its answer for a while: else a herd were refused to the last one."""
    stage = Stage(hello, limit_concurrency=2)

    def client(turn):
        def script(visitor):
            visitor.connect()
            yield turn * 0.1
            visitor.say(GET)

        return script

    visitors = [stage.visit(client(turn)) for turn in range(1, 6)]
    stage.play()
    assert [visitor.statuses for visitor in visitors] == [[503], [503], [503], [200], [200]]


# -- the last answer arrives -----------------------------------------------------------------------


async def says_close(scope, receive, send):
    """End the connection, which the client does not expect."""
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"last words"})


async def fails(scope, receive, send):
    raise ZeroDivisionError


async def breaks_off(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"last words", "more_body": True})
    raise ZeroDivisionError


@pytest.mark.parametrize("app", [says_close, fails, breaks_off])
def test_a_client_that_goes_on_talking_can_read_the_last_answer(app):
    """To close with unread input would be a reset, which destroys what was sent before."""
    stage = Stage(app)

    def script(visitor):
        visitor.connect()
        visitor.say(GET)
        for _ in range(10):
            visitor.say(GET)
            yield 0.1
        visitor.link.hang_up()

    visitor = stage.visit(script)
    stage.play()
    assert len(visitor.statuses) == 1
    assert not visitor.link.lost


# -- the moment of a deadline ----------------------------------------------------------------------


def test_a_request_that_came_while_the_reactor_was_held_is_answered():
    """Its deadline is over, but it was we who did not look."""
    second = None

    async def app(scope, receive, send):
        if scope["path"] == "/first":
            second.say(GET)  # comes in the very turn in which its deadline is over
        await hello(scope, receive, send)

    stage = Stage(app)

    def idle(visitor):
        visitor.connect()
        yield 0

    def busy(visitor):
        yield 1.0
        visitor.connect()
        yield 4.0
        visitor.say(GET.replace(b"/ ", b"/first "))

    second = stage.visit(idle)
    first = stage.visit(busy)
    stage.play()
    assert (first.statuses, second.statuses) == ([200], [200])
    assert second.ended_at == about(10)


@pytest.mark.parametrize("read_at", [2.0, 4.99, 5.0, 5.01, 7.0, 12.0])
def test_a_client_is_idle_from_the_moment_on_in_which_it_has_read_its_answer(read_at):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 20_000})

    stage = Stage(app)

    def script(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        yield read_at
        visitor.reads = True
        visitor.read()
        yield 4.9  # seconds later it asks again, within its time
        visitor.say(GET)

    visitor = stage.visit(script, capacity=15_000)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200, 200], about(read_at + 4.9 + 5))


@pytest.mark.parametrize("rest", [b"5", b"5\r\nab", b"0\r\n"])
def test_the_rest_of_a_chunked_body_is_not_mistaken_for_a_head(rest):
    """The answer is complete: whatever is still missing, there is nothing to be said about it."""
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        yield 1.0
        visitor.say(rest)

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(5))


def test_a_connection_is_idle_when_the_rest_of_a_chunked_body_has_come():
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5")
        yield 1.0
        visitor.say(b"\r\nabcde\r\n0\r\n\r\n")
        yield 1.0

    visitor = stage.visit(script)
    stage.play()
    assert (visitor.statuses, visitor.ended_at) == ([200], about(1 + 5))


# -- a body that nobody wants, and the end ---------------------------------------------------------


@pytest.mark.parametrize("why", ["a signal", "too slow"])
def test_who_still_sends_a_body_can_read_its_answer_at_the_end(why):
    """A close over what is still to come would be a reset, and that may overtake the answer."""
    stage = Stage(hello)
    seen = []

    def script(visitor):
        visitor.connect()
        visitor.say(POST % 1000 + b"a beginning")
        if why == "a signal":
            yield 1.0
            stage.signal()
        else:
            yield 5.01  # --timeout-keep-alive
        visitor.say(b"more of it")
        seen.append((visitor.link.server_ended, visitor.link.lost))
        yield 0.5
        seen.append((visitor.link.server_ended, visitor.link.lost))

    visitor = stage.visit(script)
    stage.play()
    assert visitor.statuses == [200] and seen[-1] == (True, False)
