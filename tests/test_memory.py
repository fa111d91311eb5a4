"""The bound of all buffers together: --limit-memory, its three measures, and the way back."""

from __future__ import annotations

import pytest

from selectserve.memory import BUSY_INTERVAL, CALM_INTERVAL, MemoryLimit
from selectserve.reactor import Reactor
from selectserve.task import Event

from .support import FakeClock, FakeSelector, ScriptedSocket
from .test_deadlines import GET, Stage, hello

LIMIT = 1_000_000


class Holder:
    """A connection that holds as much as it is told."""

    def __init__(self, held=0):
        self.held = held
        self.transport = self
        self.is_held = False
        self.asked = 0

    def held_bytes(self):
        self.asked += 1
        return self.held

    def hold_reading(self, held):
        self.is_held = held


class Books:
    def __init__(self, count):
        self.connections = [Holder() for _ in range(count)]


@pytest.fixture
def limit():
    clock = FakeClock()
    reactor = Reactor(FakeSelector(clock), clock, wakeup_pair=(ScriptedSocket(), ScriptedSocket()))
    changes = []
    limit = MemoryLimit(reactor, LIMIT, Books(4), lambda: changes.append(limit.level))
    limit.changes = changes
    yield limit
    reactor.close()


def set_held(limit, held):
    """Let the connections hold ``held`` bytes together, and look."""
    for holder in limit.books.connections:
        holder.held = held // 4
    limit.look()
    return limit.level


def test_each_measure_has_its_level_and_each_level_its_way_back(limit):
    levels = [
        set_held(limit, int(LIMIT * part))
        for part in (0, 0.99, 1.0, 1.24, 1.25, 1.49, 1.5, 9, 1.3, 1.2, 1.01, 0.99, 0.76, 0.74, 0)
    ]
    assert levels == [0, 0, 1, 1, 2, 2, 3, 3, 3, 2, 2, 1, 1, 0, 0]
    assert limit.changes == [1, 2, 3, 2, 1, 0]


def test_a_jump_takes_all_measures_at_once(limit):
    assert set_held(limit, 2 * LIMIT) == 3
    assert all(holder.is_held for holder in limit.books.connections)
    assert set_held(limit, 0) == 0
    assert not any(holder.is_held for holder in limit.books.connections)
    assert limit.changes == [3, 0]


def test_who_comes_while_nothing_is_read_is_held_too(limit):
    set_held(limit, LIMIT)
    limit.books.connections.append(Holder())
    limit.reactor.tick(BUSY_INTERVAL)
    assert limit.books.connections[-1].is_held


def test_it_looks_when_an_eighth_may_have_come(limit):
    holder = limit.books.connections[0]
    for _ in range(100):
        limit.note(LIMIT // 100)
    assert holder.asked == 7
    assert limit.added <= LIMIT // 8


def test_it_looks_after_a_while_and_not_when_nobody_is_there(limit):
    holder = limit.books.connections[0]
    limit.note(1)
    for _ in range(3):
        limit.reactor.tick(CALM_INTERVAL)
    assert holder.asked == 3
    limit.books.connections.clear()
    limit.reactor.tick(CALM_INTERVAL)
    assert limit.timer is None
    with pytest.raises(AssertionError, match="for ever"):
        limit.reactor.tick()


# -- the whole server ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["the app goes on", "the clients leave"])
def test_uploads_nobody_takes_stop_at_the_limit_and_go_on_behind_it(end):
    gate, held, log = Event(), [], []

    async def app(scope, receive, send):
        await gate.wait()
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        log.append(size)
        await hello(scope, receive, send)

    stage = Stage(app, limit_memory=LIMIT, timeout_body=1e6, timeout_keep_alive=1e6)
    service = stage.world.service

    def upload(visitor):
        visitor.connect()
        visitor.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(10):
            visitor.say(b"x" * 100_000)
            yield 0.05
        if end == "the clients leave":
            yield 10
            visitor.link.reset()

    def watch(visitor):
        for _ in range(100):
            held.append(sum(c.held_bytes() for c in service.connections))
            yield 0.05
        if end == "the app goes on":
            gate.set()
        yield 30
        assert service.memory.level == 0
        assert all(listener.listening for listener in stage.world.server.listeners)
        gate.set()
        visitor.connect()
        visitor.say(GET)
        yield 1
        visitor.link.hang_up()

    visitors = [stage.visit(upload) for _ in range(20)]
    last = stage.visit(watch)

    def leave():
        for visitor in visitors:
            visitor.link.hang_up()

    stage.world.later(100, leave)
    stage.play()
    # between two looks an eighth may come; those who are ready in the same turn are not read
    assert LIMIT <= max(held) <= LIMIT * 1.125 + 2 * 65536
    assert last.statuses == [200]
    if end == "the app goes on":
        assert log[:20] == [1_000_000] * 20
        assert [visitor.statuses for visitor in visitors] == [[200]] * 20


def test_above_it_nobody_is_accepted_and_new_requests_are_refused():

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * LIMIT})

    stage = Stage(app, limit_memory=LIMIT, timeout_write=20.0)

    def greedy(visitor):
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        yield 0

    def modest(visitor):
        visitor.connect()
        yield 1.0
        visitor.say(GET)
        yield 0

    def late(visitor):
        yield 2.0
        visitor.connect()
        visitor.say(GET)
        yield 1.0
        visitor.early = visitor.link.accepted

    there = stage.visit(modest)
    for _ in range(2):
        stage.visit(greedy, capacity=1000)
    comes_later = stage.visit(late)
    stage.play()
    assert there.statuses in ([503], []), "no more answers are begun"
    assert comes_later.early is False
    assert comes_later.statuses == [200], "when the greedy ones were sent away, there was room"


def test_who_has_asked_already_is_told_when_to_come_again():
    """Its second request came with the first, and its turn above the limit: 503, Retry-After."""
    gate, began = Event(), []

    async def app(scope, receive, send):
        began.append(scope["path"])
        if scope["path"] == "/first":
            await gate.wait()
            await hello(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 2 * LIMIT})

    stage = Stage(app, limit_memory=LIMIT)

    def pipeliner(visitor):
        visitor.connect()
        visitor.say(GET.replace(b"/ ", b"/first ") + GET)
        yield 0

    def greedy(visitor):
        yield 1.0
        visitor.connect()
        visitor.reads = False
        visitor.say(GET)
        yield 1.0
        assert stage.world.service.memory.level == 3
        gate.set()
        yield 1.0
        visitor.link.hang_up()

    visitor = stage.visit(pipeliner)
    stage.visit(greedy, capacity=1000)
    stage.play()
    assert (visitor.statuses, began) == ([200, 503], ["/first", "/"])
    assert visitor.ended_at == pytest.approx(2.0, abs=0.01)
    head = visitor.received[visitor.received.index(b"HTTP/1.1 503 ") :].lower()
    assert b"\r\nretry-after: 1\r\n" in head and b"\r\nconnection: close\r\n" in head
