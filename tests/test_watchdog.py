"""The watchdog: who holds the reactor is named while he does, and nobody else is."""

from __future__ import annotations

import logging
import os
import threading
import types

import pytest

from selectserve.reactor import Reactor
from selectserve.watchdog import IDLE_LOOKS, LOOKS, Watchdog, describe_line

from .support import DEADLINE, FakeClock

LIMIT = 0.1


class Held:
    """A reactor on a thread of its own, that a step holds until it is told to let go."""

    def __init__(self):
        self.clock = FakeClock()
        self.reactor = Reactor(clock=self.clock)
        self.watchdog = Watchdog(self.reactor, LIMIT)
        self.entered = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.reactor.run, daemon=True)
        self.thread.start()
        self.watchdog.thread_id = self.thread.ident
        self.watchdog.wakeup = threading.Event()

    def hold(self, scope=None):
        """Let a step of the app begin, and not end."""

        def handler(scope=scope):
            self.entered.release()
            self.leave.acquire()

        self.reactor.call_from_thread(handler)
        assert self.entered.acquire(timeout=DEADLINE)

    def let_go(self):
        """Let the step end, and wait until the reactor waits again."""
        self.leave.release()
        done = threading.Event()
        self.reactor.call_from_thread(done.set)
        assert done.wait(DEADLINE)
        while self.watchdog.stack():
            pass

    def look(self, after):
        """Let the watchdog look after so many seconds."""
        self.clock.advance(after)
        self.watchdog.look()

    def close(self):
        self.leave.release(100)
        self.reactor.call_from_thread(self.reactor.stop)
        self.thread.join(DEADLINE)
        self.reactor.close()


@pytest.fixture
def held():
    held = Held()
    yield held
    held.close()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "selectserve.error")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_step_that_lasts_is_told_once_with_request_and_line(held, said):
    held.hold({"type": "http", "method": "GET", "path": "/slow\x1b[31m"})
    for _ in range(10):
        held.look(LIMIT / LOOKS)
    (line,) = said()
    assert line.startswith("a step has held the reactor for 0.1")
    assert " s so far: GET /slow\\x1b[31m, at " in line
    assert "test_watchdog.py" in line and "in handler: self.leave.acquire()" in line


def test_a_step_that_ends_in_time_is_not_told(held, said):
    for _ in range(10):
        held.hold()
        held.look(LIMIT / LOOKS)
        held.look(LIMIT / LOOKS)
        held.let_go()
        held.look(LIMIT)
    assert said() == []


def test_each_long_step_is_told(held, said):
    for _ in range(3):
        held.hold()
        for _ in range(LOOKS + 2):
            held.look(LIMIT / LOOKS)
        held.let_go()
    assert len(said()) == 3


def test_who_comes_last_in_a_long_turn_is_not_to_blame(held, said):
    """A turn of many short steps is long, but no single one of them held anybody up."""

    def handler():
        held.entered.release()
        held.leave.acquire()

    held.reactor.ready.extend([handler] * LOOKS * 3)
    held.reactor.wakeup()
    for _ in range(LOOKS * 3):
        assert held.entered.acquire(timeout=DEADLINE)
        held.look(LIMIT / LOOKS * 0.9)
        held.leave.release()
    assert said() == []


def test_a_reactor_that_waits_holds_nobody(held, said):
    held.let_go()
    for _ in range(20):
        held.look(LIMIT * 10)
    assert said() == []
    assert held.watchdog.idle_looks >= IDLE_LOOKS


def test_a_look_that_was_held_up_itself_is_proof_enough(held, said):
    """Code in C may keep the interpreter's lock: then there is only this one look."""
    held.look(0)
    held.hold()
    held.look(LIMIT * 20)
    assert len(said()) == 1


def test_a_frame_between_two_lines_is_named_by_its_function():
    """Its f_lineno is None; the thread died of that, and watched no longer."""
    code = describe_line.__code__
    frame = types.SimpleNamespace(f_code=code, f_lineno=None)
    told = describe_line(frame)
    assert told.startswith(f"{code.co_filename}:{code.co_firstlineno} in describe_line: def ")


def test_without_threads_it_is_told_afterwards(said, monkeypatch):
    clock = FakeClock()
    reactor = Reactor(clock=clock)
    monkeypatch.setitem(__import__("sys").modules, "threading", None)
    watchdog = Watchdog(reactor, LIMIT)
    watchdog.start()
    for seconds in (0.01, 0.3, 0.01):
        reactor.call_soon(lambda seconds=seconds: clock.advance(seconds))
        reactor.tick(0)
        reactor.tick(0)
    assert said() == ["a turn has held the reactor for 0.30 s"]
    watchdog.stop()
    assert reactor.on_turn is None
    reactor.close()


def test_the_thread_sleeps_while_the_reactor_does_and_wakes_with_it(said):
    reactor = Reactor()
    watchdog = Watchdog(reactor, 0.02)
    slept, woke = threading.Event(), threading.Event()
    real = watchdog.sleep

    def sleep():
        slept.set()
        real()
        woke.set()

    watchdog.sleep = sleep
    thread = threading.Thread(target=lambda: (watchdog.start(), reactor.run()), daemon=True)
    thread.start()
    assert slept.wait(DEADLINE)
    reactor.wakeup()
    assert woke.wait(DEADLINE)
    watchdog.stop()
    reactor.call_from_thread(reactor.stop)
    thread.join(DEADLINE)
    reactor.close()
    assert said() == []


# -- a real server ---------------------------------------------------------------------------------


def test_a_real_step_is_named_while_it_blocks(serve):
    server = serve("tests.attack_apps:app", "--slow-step", "0.05")
    with server.connect() as client:
        client.request("GET", "/block?gate")
        # the app holds the reactor until this file exists: so it is told while it does
        match = server.wait_for_log(r"a step has held the reactor for .* so far: (.*)")
        assert match[1].startswith("GET /block, at ")
        assert "attack_apps.py" in match[1] and "in hold_the_reactor: " in match[1]
        with open(server.wait_for_log("APP gate (.*)")[1], "w"):
            pass
        assert client.read_response().status == 200


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_waiting_is_not_blocking(serve, loop):
    server = serve("tests.attack_apps:app", "--slow-step", "1", "--loop", loop)
    with server.connect() as client:
        assert client.get("/wait?2.5").status == 200
    assert "held the reactor" not in server.log_text()


def test_off_is_off(serve):
    server = serve("tests.attack_apps:app", "--slow-step", "0")
    if os.path.exists(f"/proc/{server.process.pid}/task"):
        assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1
    with server.connect() as client:
        assert client.get("/wait?0").status == 200
