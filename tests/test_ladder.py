"""The ladder of examples: every rung keeps its promise, and has the flaw that it owns up to.

``examples/probe.py`` asks real processes over real sockets; what it cannot see from outside is
asked here of the rungs' own classes, with a clock that stands still and the two ends of a pair.
"""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import importlib
import os
import re
import select
import socket
import subprocess
import sys

import pytest

from examples import probe
from examples.rung04_buffers import HIGH_WATER, READ, WRITE, Transport
from examples.rung04_buffers import Echo as PlainEcho
from examples.rung04_buffers import Reactor as PlainReactor
from examples.rung05_deadlines import IDLE, Echo, Reactor
from examples.rung06_coroutine import Event, Task, echo, sleep, wait_readable
from examples.rung07_http import NEED_DATA, Connection, Data, ProtocolError, RequestParser
from examples.rung08_asgi import ASGIConnection
from examples.rung09_chat import Close, FrameParser, Text, WebSocketConnection, frame, unmask

from .support import DEADLINE, ROOT, FakeClock, splits

NUMBERS = sorted(probe.CHECKS)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


# -- the ladder as a whole -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed():
    """Probe all rungs, two at a time: they mostly wait."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {n: pool.submit(lambda n=n: list(probe.probe(n))) for n in NUMBERS}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_rung_keeps_its_promise_and_has_its_flaw(probed, number):
    findings = probed[number].result(300)
    assert findings
    assert [sentence for _, as_told, sentence in findings if not as_told] == []


def test_every_question_of_the_probe_is_answered_both_ways():
    """Or it might be a question to which there is only one answer."""
    promised = {check for promises, _ in probe.CHECKS.values() for check in promises}
    wrong = {check for _, flaws in probe.CHECKS.values() for check in flaws}
    assert promised - wrong == {probe.told}
    assert wrong - promised == {probe.dripping_client, probe.silent_member}
    for number in NUMBERS[:-1]:
        _, flaws = probe.CHECKS[number]
        assert flaws, f"rung {number} says that nothing is wrong with it"
        later = [check for n in NUMBERS if n > number for check in probe.CHECKS[n][0]]
        assert number in (5, 9) or set(flaws) <= set(later), f"nobody mends rung {number}"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_rung_is_short_and_says_what_to_read_first(number):
    path = probe.Rung(number).path
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert 20 <= len(source.splitlines()) <= 150
    assert docstring.startswith(f"{number:02} · ")
    headings = [line.split(":")[0] for line in docstring.splitlines() if line[:1] not in ("", " ")]
    assert headings[1:] == ["Read first", "New here", "Still wrong"]
    for other in NUMBERS[number:]:
        assert f"rung{other:02}" not in source, "a rung is read before those above it"
    if number > 1:
        assert f"rung{number - 1:02}" in docstring


@pytest.mark.parametrize("number", NUMBERS[:-1])
def test_a_rung_stands_on_nothing_but_the_rungs_below(number):
    tree = ast.parse(probe.Rung(number).path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1
            assert int(node.module[4:6]) < number
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert "selectserve" not in alias.name
                assert "asyncio" not in alias.name


def test_the_client_of_rung_01_talks_to_an_echo():
    with probe.Rung(3) as rung:
        done = subprocess.run(
            [sys.executable, "-m", "examples.rung01_blocking_echo", "client", str(rung.address[1])],
            cwd=ROOT,
            input="hello\n" + "long " * 1000 + "\n",
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
    assert done.stdout == "hello\n" + "long " * 1000 + "\n"
    assert done.returncode == 0


@pytest.mark.parametrize("number", [8, 9])
def test_any_app_runs_on_the_upper_rungs(number):
    with probe.Rung(number, APP="examples.hello:app") as rung:
        client = rung.connect()
        client.sendall(GET + GET)
        answer = client.makefile("rb").read(2 * len(HELLO))
    assert answer == 2 * HELLO


HELLO = b"HTTP/1.1 200 \r\ncontent-type: text/plain\r\ncontent-length: 14\r\n\r\nHello, world!\n"


# -- one rung at a time ----------------------------------------------------------------------------


class Place:
    """A reactor whose clock stands still, and what a Server is to its connections."""

    def __init__(self, reactor_class=Reactor):
        self.clock = FakeClock()
        self.reactor = reactor_class(self.clock) if reactor_class is Reactor else reactor_class()
        self.clients = set()
        self.peers = []

    def pair(self):
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.setblocking(False)
        self.peers += [ours, peer]
        return ours, peer

    def connect(self, protocol):
        ours, peer = self.pair()
        return Transport(self.reactor, ours, protocol), peer

    def turn(self, times=4):
        """Turn the reactor a few times, without waiting."""
        for _ in range(times):
            if hasattr(self.reactor, "ready"):
                self.reactor.ready.append(lambda: None)
            elif not self.reactor.selector.select(0):
                return
            self.reactor.tick()

    def close(self):
        for key in list(self.reactor.selector.get_map().values()):
            key.fileobj.close()
        for peer in self.peers:
            peer.close()
        self.reactor.selector.close()
        if hasattr(self.reactor, "waker"):
            self.reactor.waker.close()


@pytest.fixture
def place():
    place = Place()
    yield place
    place.close()


@pytest.fixture
def plain_place():
    place = Place(PlainReactor)
    yield place
    place.close()


def received(peer):
    """Return what has come to peer so far, and whether that was all."""
    data = b""
    while select.select([peer], [], [], 0)[0]:
        piece = peer.recv(1 << 20)
        data += piece
        if not piece:
            return data, True
    return data, False


def test_04_a_buffer_is_bounded_and_nothing_is_lost(plain_place):
    transport, peer = plain_place.connect(PlainEcho())
    data = os.urandom(1 << 20)
    sent, echoed, fullest = 0, b"", 0
    while sent < len(data):  # write until nothing more is taken, and only then read
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += peer.send(data[sent : sent + 65536])
                plain_place.turn(1)
                fullest = max(fullest, len(transport.buffer))
        assert not transport.reading or sent == len(data)
        piece = True
        while piece:
            piece = received(peer)[0]
            echoed += piece
            plain_place.turn(2)
    peer.shutdown(socket.SHUT_WR)
    ended = False
    while not ended:
        plain_place.turn(1)
        piece, ended = received(peer)
        echoed += piece
    assert echoed == data
    assert HIGH_WATER < fullest <= HIGH_WATER + 65536


def test_04_only_a_short_send_waits_for_writability(plain_place):
    transport, peer = plain_place.connect(PlainEcho())
    selector = plain_place.reactor.selector
    interest = lambda: selector.get_key(transport.sock).events  # noqa: E731
    peer.send(b"x")
    plain_place.turn(1)
    assert (interest(), received(peer)[0]) == (READ, b"x")
    transport.write(bytes(1 << 20))
    transport.flush()
    assert interest() == WRITE, "paused, so that nothing is read either"
    while len(transport.buffer):
        received(peer)
        plain_place.turn(1)
    assert interest() == READ


def test_05_a_deadline_is_moved_by_every_byte_and_kept_in_the_end(place):
    transport, peer = place.connect(Echo(place))
    for _ in range(10):
        place.clock.advance(IDLE * 0.9)
        peer.send(b".")
        place.turn()
        assert received(peer) == (b".", False)
    assert len(place.reactor.timers) == 1, "moving a deadline arms no second timer"
    place.clock.advance(IDLE * 0.9)
    place.turn()
    assert transport.state == "open"
    place.clock.advance(IDLE * 0.1)
    place.turn()
    assert received(peer) == (b"", True)
    assert not place.clients


def test_05_the_wait_lasts_up_to_the_first_deadline(place):
    reactor, fired = place.reactor, []
    assert reactor.patience() is None
    for name, seconds in ("c", 3), ("a", 1), ("b", 1):
        reactor.call_at(place.clock() + seconds, lambda name=name: fired.append(name))
    assert reactor.patience() == 1
    place.clock.advance(1)
    assert reactor.patience() == 0
    reactor.tick()
    assert fired == ["a", "b"]
    assert reactor.patience() == 2
    reactor.ready.append(lambda: fired.append("ready"))
    assert reactor.patience() == 0


def test_05_a_byte_ends_the_wait(place):
    called = []
    assert place.reactor.selector.select(0) == []
    place.reactor.call_from_thread(lambda: called.append(True))
    assert [key.fileobj for key, _ in place.reactor.selector.select(0)] == [place.reactor.wakeup]
    place.reactor.tick()
    assert called == [True]
    assert place.reactor.selector.select(0) == [], "the byte has been read"


def test_05_what_is_called_for_in_a_tick_waits_for_the_next(place):
    order = []

    def again():
        order.append("again")
        place.reactor.ready.append(lambda: order.append("next tick"))

    place.reactor.ready.append(again)
    place.reactor.tick()
    assert order == ["again"]
    place.reactor.tick()
    assert order == ["again", "next tick"]


def test_06_a_coroutine_says_what_it_waits_for_and_returns():
    coro = sleep(1.5)
    assert coro.send(None) == ("sleep", 1.5)
    with pytest.raises(StopIteration):
        coro.send(None)


def test_06_nobody_sleeps_longer_for_another(place):
    woken = []

    async def sleeper(name, seconds):
        await sleep(seconds)
        woken.append((name, place.clock()))

    start = place.clock()
    for name, seconds in ("late", 2), ("early", 1), ("too", 1):
        Task(place.reactor, sleeper(name, seconds))
    place.turn()
    for _ in range(2):
        place.clock.advance(1)
        place.turn()
    assert woken == [("early", start + 1), ("too", start + 1), ("late", start + 2)]


def test_06_an_event_lets_all_go_on_who_wait_and_a_task_fails_alone(place, capsys):
    event, passed = Event(), []

    async def waiter(name):
        await event.wait()
        if name == "b":
            raise ValueError("of its own making")
        passed.append(name)

    for name in "abc":
        Task(place.reactor, waiter(name))
    place.turn()
    assert passed == []
    event.set()
    place.turn()
    assert passed == ["a", "c"]
    assert "ValueError: of its own making" in capsys.readouterr().err


def test_06_still_wrong_nothing_reaches_a_parked_coroutine(place):
    ours, peer = place.pair()
    Task(place.reactor, echo(ours))
    peer.send(b"x")
    place.turn()
    assert received(peer) == (b"x", False)
    place.clock.advance(86400)
    place.turn()
    assert received(peer) == (b"", False)
    assert place.reactor.timers == []


def test_06_still_wrong_two_tasks_cannot_wait_for_one_socket(place, capsys):
    """The selector knows a socket once; the real task says so in words."""
    ours, _ = place.pair()
    for _ in range(2):
        Task(place.reactor, wait_readable(ours))
    with pytest.raises(KeyError):
        place.turn()


def events_of(pieces):
    """Feed the pieces; return the events, with the pieces of Data joined."""
    parser, events = RequestParser(), []
    for piece in pieces:
        parser.receive_data(piece)
        while (event := parser.next_event()) is not NEED_DATA:
            if isinstance(event, Data) and events[-1][0] == "Data":
                event.data = events.pop()[1]["data"] + event.data
            events.append((type(event).__name__, vars(event)))
    return events


def test_07_the_events_do_not_depend_on_how_the_bytes_are_cut():
    data = (
        b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        b"GET /c HTTP/1.1\r\nX:  y \t\r\n\r\n"
    )
    expected = [
        (
            "Request",
            {
                "method": "POST",
                "target": "/a?b",
                "headers": [(b"host", b"x"), (b"content-length", b"5")],
            },
        ),
        ("Data", {"data": b"hello"}),
        ("EndOfMessage", {}),
        ("Request", {"method": "GET", "target": "/c", "headers": [(b"x", b"y")]}),
        ("EndOfMessage", {}),
    ]
    for pieces in splits(data):
        assert events_of(pieces) == expected


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nspace : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),  # still wrong
    ],
)
def test_07_a_broken_rule_is_answered_and_nothing_behind_it_is_read(place, data, status):
    parser = RequestParser()
    parser.receive_data(data)
    with pytest.raises(ProtocolError) as caught:
        parser.next_event()
    assert caught.value.status == status
    _, peer = place.connect(Connection(place))
    peer.send(data + GET)
    place.turn()
    answer, ended = received(peer)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert ended


def test_07_a_head_is_not_read_for_ever():
    parser = RequestParser()
    parser.receive_data(b"GET / HTTP/1.1\r\na: ")
    with pytest.raises(ProtocolError) as caught:
        for _ in range(10):
            assert parser.next_event() is NEED_DATA
            parser.receive_data(bytes(10_000))
    assert caught.value.status == 431


def test_07_answers_come_in_order(place):
    _, peer = place.connect(Connection(place))
    peer.send(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % n for n in range(3)))
    place.turn()
    answer, ended = received(peer)
    assert re.findall(rb"GET /([0-9]),", answer) == [b"0", b"1", b"2"]
    assert not ended


# -- 08: the app in its task -----------------------------------------------------------------------


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_08_messages_come_as_events_come_and_leave_as_bytes(place):
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["method"], scope["path"], scope["query_string"]))
        while True:
            message = await receive()
            seen.append(message["body"])
            if not message["more_body"]:
                break
        await send(start())
        for piece in b"one", b"two", b"":
            await send(body(piece, more=piece != b""))
        seen.append((await receive())["type"])

    place.app = app
    _, peer = place.connect(ASGIConnection(place))
    peer.send(b"POST /%41?b=%42 HTTP/1.1\r\nContent-Length: 4\r\n\r\nab")
    place.turn()
    assert seen == [("POST", "/A", b"b=%42"), b"ab"], "the app is called when the head is there"
    peer.send(b"cd")
    place.turn()
    assert seen[2:] == [b"cd", b"", "http.disconnect"]
    assert received(peer) == (
        b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
        False,
    )


def test_08_one_request_at_a_time(place):
    gates, began = [Event(), Event()], []

    async def app(scope, receive, send):
        number = int(scope["path"][1:])
        began.append(number)
        await gates[number].wait()
        await send(start(200, (b"content-length", b"1")))
        await send(body(b"%d" % number))

    place.app = app
    _, peer = place.connect(ASGIConnection(place))
    peer.send(b"GET /0 HTTP/1.1\r\n\r\nGET /1 HTTP/1.1\r\n\r\n")
    place.turn()
    assert began == [0]
    gates[0].set()
    place.turn()
    assert began == [0, 1]
    assert received(peer)[0].endswith(b"\r\n\r\n0")
    gates[1].set()
    place.turn()
    assert received(peer)[0].endswith(b"\r\n\r\n1")


def test_08_an_app_that_fails_gets_an_answer_given(place, capsys):
    async def app(scope, receive, send):
        raise ValueError("of the app")

    place.app = app
    _, peer = place.connect(ASGIConnection(place))
    peer.send(GET)
    place.turn()
    answer, ended = received(peer)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert ended
    assert "ValueError: of the app" in capsys.readouterr().err


def test_08_a_client_that_leaves_is_told_to_the_app(place, capsys):
    told, gate = [], Event()

    async def app(scope, receive, send):
        await receive()
        told.append(await receive())
        told.append(await receive())
        await gate.wait()
        try:
            await send(start())
        except OSError:
            told.append("OSError")
            raise

    place.app = app
    transport, peer = place.connect(ASGIConnection(place))
    peer.send(GET)
    place.turn()
    assert told == []
    peer.close()
    place.turn()
    assert told == 2 * [{"type": "http.disconnect"}]
    assert transport.state == "closed"
    gate.set()
    place.turn()
    assert told[2:] == ["OSError"]
    assert capsys.readouterr().err == "", "which is no news"


def test_08_send_parks_while_the_client_does_not_read(place):
    sent = []

    async def app(scope, receive, send):
        await send(start())
        for number in range(100):
            await send(body(bytes(100_000), more=number < 99))
            sent.append(number)

    place.app = app
    transport, peer = place.connect(ASGIConnection(place))
    peer.send(GET)
    place.turn(50)
    parked_at = len(sent)
    assert parked_at < 100
    assert len(transport.buffer) <= HIGH_WATER + 100_100
    place.turn(50)
    assert len(sent) == parked_at
    data = b""
    while len(sent) < 100 or transport.buffer:
        data += received(peer)[0]
        place.turn()
    data += received(peer)[0]
    assert data.count(b"\0") == 100 * 100_000
    assert data.endswith(b"\r\n0\r\n\r\n")


def test_08_still_wrong_an_upload_is_kept_in_memory(place):
    async def app(scope, receive, send):
        await Event().wait()

    place.app = app
    connection = ASGIConnection(place)
    _, peer = place.connect(connection)
    peer.send(b"POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n")
    left = 8_000_000
    while left:
        with contextlib.suppress(BlockingIOError):
            left -= peer.send(bytes(min(left, 65536)))
        place.turn(1)
    place.turn()
    assert sum(len(message["body"]) for message in connection.cycle.messages) == 8_000_000


def test_08_still_wrong_head_is_answered_with_a_body(place):
    async def app(scope, receive, send):
        await send(start())
        await send(body(b"oh"))

    place.app = app
    _, peer = place.connect(ASGIConnection(place))
    peer.send(b"HEAD / HTTP/1.1\r\n\r\n")
    place.turn()
    assert received(peer)[0].endswith(b"\r\n\r\n2\r\noh\r\n0\r\n\r\n")


# -- 09: frames ------------------------------------------------------------------------------------

MASK = b"\x01\x02\x03\x04"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3, and its answer
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: %b\r\n\r\n" % KEY


def masked(kind, data):
    head = frame(kind, data)
    head = head[: len(head) - len(data)]
    return head[:1] + bytes([head[1] | 128]) + head[2:] + MASK + unmask(data, MASK)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65535, 65536])
def test_09_frames_of_every_length(size):
    text = b"x" * size
    assert unmask(text, MASK) == bytes(ord("x") ^ MASK[i % 4] for i in range(size))
    parser = FrameParser(bytearray())
    data = masked(0x81, text)
    for piece in data[:-1], data[-1:]:
        assert parser.next_event() is NEED_DATA
        parser.receive_data(piece)
    assert parser.next_event() == Text(text.decode())
    assert parser.next_event() is NEED_DATA


def test_09_the_events_do_not_depend_on_how_the_bytes_are_cut():
    data = masked(0x81, "grüß".encode()) + masked(0x81, b"x" * 200) + masked(0x88, b"\x03\xe8bye")
    for pieces in splits(data):
        parser, events = FrameParser(bytearray()), []
        for piece in pieces:
            parser.receive_data(piece)
            while (event := parser.next_event()) is not NEED_DATA:
                events.append(event)
        assert events == [Text("grüß"), Text("x" * 200), Close(1000)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\x81\xff" + (2 << 20).to_bytes(8, "big"), 1009),  # refused before it is received
        (masked(0x82, b"bytes"), 1003),
        (masked(0x01, b"a part"), 1003),  # still wrong: a message may come in parts
        (masked(0x89, b"ping"), 1003),  # still wrong: a ping wants a pong
        (masked(0x88, b""), 1005),
    ],
)
def test_09_what_is_not_understood_is_closed_with_a_code(place, data, code):
    parser = FrameParser(bytearray(data))
    assert parser.next_event() == Close(code)
    told = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        told.append(await receive())

    place.app = app
    _, peer = place.connect(WebSocketConnection(place))
    peer.send(HANDSHAKE + data)
    place.turn()
    answer, ended = received(peer)
    assert ACCEPT in answer
    assert answer.endswith(frame(0x88, b"" if code == 1005 else code.to_bytes(2, "big")))
    assert ended
    assert told == [{"type": "websocket.disconnect", "code": code}]


def test_09_what_one_says_all_hear(place):
    chat = importlib.import_module("examples.rung09_chat")
    place.app = chat.app
    members = [place.connect(WebSocketConnection(place))[1] for _ in range(3)]
    for member in members:
        member.send(HANDSHAKE)
    place.turn()
    assert len(chat.room) == 3
    for member in members:
        assert received(member)[0].startswith(b"HTTP/1.1 101 ")
    members[0].send(masked(0x81, b"hello"))
    place.turn()
    for member in members:
        assert received(member) == (frame(0x81, b"hello"), False)
    members[1].close()
    members[2].send(masked(0x88, b"\x03\xe8"))
    place.turn()
    assert received(members[2]) == (frame(0x88, b"\x03\xe8"), True)
    assert len(chat.room) == 1
    members[0].close()
    place.turn()
    assert not chat.room
