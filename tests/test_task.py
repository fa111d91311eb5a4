"""Coroutines stepped by hand: traps, cancelling, and the primitives, with a clock that obeys."""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import socket
import threading
import traceback

import pytest

from selectserve.errors import Cancelled
from selectserve.reactor import EVENT_READ, EVENT_WRITE, Reactor
from selectserve.task import (
    Event,
    NativeStepper,
    Task,
    Waiter,
    current_stepper,
    run_in_thread,
    sleep,
    spawn,
    stepper_here,
    thread_pool_class,
    wait_readable,
    wait_writable,
)

from .support import DEADLINE, FakeClock, FakeSelector, ScriptedSocket

NAME = contextvars.ContextVar("NAME", default="unset")


class Turn:
    """A bare yield: again, next turn."""

    def __await__(self):
        yield


class World:
    """A stepper on a reactor whose clock stands still; ``ends`` is how its tasks ended."""

    def __init__(self, reactor=None):
        self.clock = FakeClock()
        self.selector = FakeSelector(self.clock)
        pair = ScriptedSocket(), ScriptedSocket()
        self.reactor = reactor or Reactor(self.selector, self.clock, wakeup_pair=pair)
        self.stepper = NativeStepper(self.reactor)
        self.log = []
        self.ends = []

    def spawn(self, coro):
        """Start a task in a context of its own."""
        context = contextvars.copy_context()
        context.run(current_stepper.set, self.stepper)
        return self.stepper.spawn(coro, self.ends.append, context)

    def turn(self):
        """Make one turn; no time passes."""
        self.reactor.tick(0)

    def settle(self):
        """Turn until nothing more happens without time or readiness."""
        for _ in range(1000):
            if not self.reactor.ready:
                return
            self.turn()
        raise AssertionError("this never comes to rest")

    def check_empty(self):
        """Nothing may be left when all tasks have ended."""
        assert self.stepper.tasks == set()
        assert not self.stepper.stepping
        assert list(self.reactor.ready) == []
        assert [timer for _, _, timer in self.reactor.timers if timer.action is not None] == []
        assert list(self.selector.keys) == [self.reactor.wakeup_receiver]


@pytest.fixture
def world():
    world = World()
    yield world
    world.reactor.close()


@pytest.fixture
def real():
    """A world with a real selector and clock."""
    reactor = Reactor()
    world = World(reactor)
    guard = reactor.call_later(DEADLINE, lambda: pytest.fail("nothing came in time"))
    yield world
    guard.cancel()
    reactor.close()


# -- steps and traps -------------------------------------------------------------------------------


def test_the_first_step_is_at_once_and_a_task_may_end_in_it(world):
    async def app():
        world.log.append("stepped")

    task = world.spawn(app())
    assert (world.log, world.ends) == (["stepped"], [None])
    task.cancel()
    world.check_empty()


def test_a_task_spawned_by_a_task_waits_for_the_next_round(world):
    """Steps are never nested: two thousand pipelined requests would overflow the stack."""

    async def inner(depth):
        world.log.append(depth)
        if depth < 3000:
            world.spawn(inner(depth + 1))
            world.log.append("back")

    world.spawn(inner(0))
    assert world.log == [0, "back"]
    world.turn()
    assert world.log == [0, "back", 1, "back"]
    for _ in range(3000):
        world.turn()
    assert world.log[-1] == 3000
    assert world.ends == [None] * 3001
    world.check_empty()


def test_a_trap_parks_and_a_release_steps_in_the_next_round(world):
    waiter = world.stepper.waiter()

    async def app():
        world.log.append("before")
        await waiter
        world.log.append("after")

    task = world.spawn(app())
    assert task.state == "parked" and task in world.stepper.tasks
    world.turn()
    assert world.log == ["before"]
    waiter.set_result(None)
    waiter.set_result(None)
    assert world.log == ["before"], "a release never steps inline"
    world.turn()
    assert (world.log, world.ends) == (["before", "after"], [None])
    world.check_empty()


def test_a_wait_that_is_over_already_does_not_park(world):
    async def app():
        waiter = world.stepper.waiter()
        waiter.set_result(None)
        await waiter
        assert waiter.done()

    world.spawn(app())
    assert world.ends == [None]
    world.check_empty()


def test_a_bare_yield_is_another_turn(world):
    async def app(name):
        for number in range(3):
            world.log.append(f"{name}{number}")
            await Turn()

    world.spawn(app("a"))
    world.spawn(app("b"))
    world.settle()
    assert world.log == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert world.ends == [None, None]
    world.check_empty()


def test_what_the_app_raises_is_told_once(world):
    error = ValueError("of the app")

    async def app(turns):
        for _ in range(turns):
            await Turn()
        raise error

    for turns in range(3):
        world.spawn(app(turns))
        world.settle()
    assert world.ends == [error, error, error]
    world.check_empty()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Cancelled, GeneratorExit])
def test_no_exception_escapes_a_step(world, kind):
    async def app():
        await Turn()
        raise kind

    world.spawn(app())
    world.settle()
    assert [type(exc) for exc in world.ends] == [kind]
    world.check_empty()


def test_each_task_has_its_context(world):
    async def app(name):
        assert NAME.get() == "unset"
        NAME.set(name)
        await Turn()
        assert NAME.get() == name
        await Turn()
        world.log.append(NAME.get())

    for name in "abc":
        world.spawn(app(name))
    world.settle()
    assert (world.log, NAME.get()) == (["a", "b", "c"], "unset")
    assert world.ends == [None] * 3


# -- what cannot be awaited ------------------------------------------------------------------------


def foreign(trap):
    """Return an awaitable that yields ``trap``."""

    class Foreign:
        def __await__(self):
            yield trap

    return Foreign()


def test_a_foreign_awaitable_is_told_at_the_user_s_line(world):
    async def app():
        await foreign("nonsense")  # the user's line

    world.spawn(app())
    world.settle()
    (exc,) = world.ends
    assert type(exc) is RuntimeError
    assert "yielded builtins.str, which selectserve does not know" in str(exc)
    lines = [frame.line for frame in traceback.extract_tb(exc.__traceback__)]
    assert lines[-2] == 'await foreign("nonsense")  # the user\'s line'
    assert traceback.extract_tb(exc.__traceback__)[-1].filename.endswith("test_task.py")
    world.check_empty()


def test_an_asyncio_future_is_told_with_what_to_do(world):
    class Future:
        _asyncio_future_blocking = True

    async def app():
        await foreign(Future())

    world.spawn(app())
    world.settle()
    assert "needs asyncio" in str(world.ends[0]) and "--loop asyncio" in str(world.ends[0])


def test_one_wait_for_two_tasks_is_refused(world):
    waiter = world.stepper.waiter()

    async def app():
        await waiter

    world.spawn(app())
    world.spawn(app())
    world.settle()
    (exc,) = world.ends
    assert "another task waits for" in str(exc)
    waiter.set_result(None)
    world.settle()
    assert world.ends[1:] == [None]
    world.check_empty()


def test_the_app_may_catch_it_and_go_on(world):
    async def app():
        with pytest.raises(RuntimeError):
            await foreign(42)
        await Turn()
        world.log.append("went on")

    world.spawn(app())
    world.settle()
    assert (world.log, world.ends) == (["went on"], [None])


def test_outside_of_an_app_the_primitives_explain_themselves():
    with pytest.raises(RuntimeError, match="inside an app that selectserve serves"):
        stepper_here()


# -- cancelling ------------------------------------------------------------------------------------


def test_cancel_throws_where_the_task_waits_in_the_next_round(world):
    waiter = world.stepper.waiter()

    async def app():
        try:
            await waiter
        except Cancelled:
            world.log.append("cancelled")
            raise
        finally:
            world.log.append("finally")

    task = world.spawn(app())
    task.cancel()
    assert world.log == []
    world.turn()
    assert world.log == ["cancelled", "finally"]
    assert [type(exc) for exc in world.ends] == [Cancelled]
    task.cancel()
    waiter.set_result(None)
    world.settle()
    assert len(world.ends) == 1
    world.check_empty()


def test_a_cancelled_task_may_clean_up_and_wait_meanwhile(world):
    async def app():
        try:
            await sleep(100)
        finally:
            await sleep(5)
            world.log.append(world.clock.now)

    task = world.spawn(app())
    task.cancel()
    world.settle()
    world.reactor.tick(50)
    world.settle()
    assert world.log == [1005.0]
    world.check_empty()


def test_a_cancel_may_be_caught_for_good(world):
    async def app():
        with pytest.raises(Cancelled):
            await sleep(100)
        await Turn()

    task = world.spawn(app())
    task.cancel()
    world.settle()
    assert world.ends == [None]
    world.check_empty()


def test_a_task_cancels_itself_at_its_next_wait(world):
    tasks = []

    async def app():
        await Turn()
        tasks[0].cancel()
        world.log.append("runs on")
        await world.stepper.waiter()
        world.log.append("never")

    tasks.append(world.spawn(app()))
    world.settle()
    assert world.log == ["runs on"]
    assert [type(exc) for exc in world.ends] == [Cancelled]
    world.check_empty()


def test_a_task_cancelled_before_its_first_step(world):
    async def inner():
        world.log.append("never")

    async def outer():
        world.spawn(inner()).cancel()

    world.spawn(outer())
    world.settle()
    assert world.log == []
    assert [type(exc) for exc in world.ends] == [type(None), Cancelled]
    world.check_empty()


def test_a_wait_given_up_cannot_end_a_later_one(world):
    """The release that comes late must not wake the task out of what it waits for now."""
    first, second = world.stepper.waiter(), world.stepper.waiter()

    async def app():
        try:
            await first
        except Cancelled:
            await second
            assert second.done(), "woken by a wait that was given up"

    task = world.spawn(app())
    task.cancel()
    world.settle()
    first.set_result(None)
    world.settle()
    assert world.ends == []
    second.set_result(None)
    world.settle()
    assert world.ends == [None]
    world.check_empty()


def test_cancel_all_spares_one_and_the_root(world):
    async def app(name):
        try:
            await sleep(1000)
        finally:
            world.log.append(name)

    async def main():
        current_stepper.set(world.stepper)
        for name in "abc":
            spawn(app(name))
        spared = spawn(app("spared"))
        await Turn()
        world.stepper.cancel_all(spared)
        await sleep(1)
        return sorted(world.log)

    assert world.stepper.run(main()) == ["a", "b", "c"]
    assert len(world.stepper.tasks) == 1


def test_run_returns_or_raises_what_main_does(world):
    async def main(result):
        await Turn()
        if result is None:
            raise ZeroDivisionError
        return result

    assert world.stepper.run(main(42)) == 42
    with pytest.raises(ZeroDivisionError):
        world.stepper.run(main(None))


# -- sleep and Event -------------------------------------------------------------------------------


def test_sleep(world):
    async def app(seconds):
        await sleep(seconds)
        world.log.append((seconds, world.clock.now))

    for seconds in (3, 1, 2, 0, -5):
        world.spawn(app(seconds))
    assert world.log == []
    while world.stepper.tasks:
        world.reactor.tick()
    assert world.log == [(0, 1000.0), (-5, 1000.0), (1, 1001.0), (2, 1002.0), (3, 1003.0)]
    world.check_empty()


def test_a_cancelled_sleep_leaves_no_timer(world):
    async def app():
        await sleep(1000)

    world.spawn(app()).cancel()
    world.settle()
    world.check_empty()


def test_an_event_releases_all_who_wait_and_stays_set(world):
    event = Event()

    async def app(name):
        await event.wait()
        world.log.append(name)

    for name in "abc":
        world.spawn(app(name))
    world.settle()
    assert not event.is_set()
    event.set()
    world.settle()
    assert world.log == ["a", "b", "c"]
    world.spawn(app("d"))
    assert world.log[3:] == ["d"], "no wait for what has happened"
    event.clear()
    world.spawn(app("e"))
    world.settle()
    assert len(world.log) == 4
    event.set()
    world.settle()
    world.check_empty()


def test_a_cancelled_wait_for_an_event_is_forgotten(world):
    event = Event()

    async def app():
        await event.wait()

    task = world.spawn(app())
    task.cancel()
    world.settle()
    assert event.waiters == []
    event.set()
    world.settle()
    world.check_empty()


def test_a_cancel_hits_one_of_two_who_wait(world):
    event = Event()

    async def app():
        await event.wait()

    one, _ = world.spawn(app()), world.spawn(app())
    one.cancel()
    event.set()
    world.settle()
    assert [type(exc) for exc in world.ends] == [Cancelled, type(None)]
    world.check_empty()


# -- spawn -----------------------------------------------------------------------------------------


def test_spawn_copies_the_context_and_its_result_cancels(world):
    async def inner():
        world.log.append(NAME.get())
        NAME.set("inner")
        await sleep(1000)

    async def app():
        NAME.set("outer")
        task = spawn(inner())
        await sleep(1)
        assert NAME.get() == "outer"
        task.cancel()

    world.spawn(app())
    world.reactor.tick()
    while world.reactor.ready or world.ends == []:
        world.reactor.tick()
    world.settle()
    assert (world.log, world.ends) == (["outer"], [None])
    world.check_empty()


def test_what_a_spawned_task_died_of_is_logged(world, caplog):
    async def broken():
        raise ZeroDivisionError("nobody else would see it")

    async def app():
        spawn(broken())
        spawn(sleep(1000)).cancel()

    with caplog.at_level(logging.ERROR, "selectserve.error"):
        world.spawn(app())
        world.settle()
    (record,) = caplog.records
    assert record.getMessage() == "a spawned task failed"
    assert record.exc_info[0] is ZeroDivisionError


# -- descriptors -----------------------------------------------------------------------------------


def test_wait_readable_and_writable(world):
    sock = ScriptedSocket()

    async def app():
        await wait_readable(sock)
        world.log.append("readable")
        await wait_writable(sock)
        world.log.append("writable")

    world.spawn(app())
    world.turn()
    assert world.selector.keys[sock].events == EVENT_READ
    world.selector.set_ready(sock, EVENT_READ)
    world.turn()
    assert world.log == ["readable"]
    assert world.selector.keys[sock].events == EVENT_WRITE
    world.selector.set_ready(sock, EVENT_WRITE)
    world.turn()
    assert world.ends == [None]
    world.check_empty()


def test_two_cannot_wait_for_one_descriptor(world):
    sock = ScriptedSocket()
    first = world.spawn(wait_readable(sock))
    world.spawn(wait_readable(sock))
    assert "another task waits for" in str(world.ends[0])
    first.cancel()
    world.settle()
    world.check_empty()


def test_a_real_descriptor(real):
    one, two = socket.socketpair()

    async def app():
        await wait_readable(one)
        real.log.append(one.recv(10))

    with one, two:
        real.spawn(app())
        real.reactor.tick(0)
        assert real.log == []
        two.send(b"x")
        while not real.ends:
            real.reactor.tick()
    assert (real.log, real.ends) == ([b"x"], [None])


# -- threads ---------------------------------------------------------------------------------------


def test_threads_that_the_system_refuses(monkeypatch):
    """Those that are there do the work, once; without any it is told."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    pool, gate = thread_pool_class("this test")(2), threading.Event()
    first = pool.submit(gate.wait, DEADLINE)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = pool.submit(int, "3")
    gate.set()
    assert first.result(DEADLINE) and second.result(DEADLINE) == 3
    with pytest.raises(RuntimeError, match="can't start"):
        thread_pool_class("this test")(2).submit(int)
    pool.shutdown()


def test_run_in_thread_returns_raises_and_sees_the_context(real):
    def work(number):
        assert threading.get_ident() != threading.main_thread().ident
        real.log.append(NAME.get())
        return number // (number - 1)

    async def app():
        NAME.set("of the request")
        assert await run_in_thread(work, 3) == 1
        with pytest.raises(ZeroDivisionError):
            await run_in_thread(work, 1)

    real.spawn(app())
    while not real.ends:
        real.reactor.tick()
    assert (real.ends, real.log) == ([None], ["of the request"] * 2)


def test_a_task_cancelled_meanwhile_goes_on_and_is_not_woken_by_the_thread(real):
    gate = threading.Event()
    later = Event()

    async def app():
        try:
            await run_in_thread(gate.wait, DEADLINE)
        except Cancelled:
            real.log.append("cancelled")
        await later.wait()
        assert later.is_set(), "woken by the thread"

    async def other():
        gate.set()
        await run_in_thread(int)
        await run_in_thread(int)
        assert real.ends == []
        later.set()

    real.spawn(app()).cancel()
    while not real.log:
        real.reactor.tick()
    real.spawn(other())
    while len(real.ends) < 2:
        real.reactor.tick()
    assert real.ends == [None, None]


def test_threads_work_side_by_side(real):
    barrier = threading.Barrier(5, timeout=DEADLINE)

    async def app():
        await run_in_thread(barrier.wait)

    for _ in range(5):
        real.spawn(app())
    while len(real.ends) < 5:
        real.reactor.tick()
    assert real.ends == [None] * 5


# -- what is left ----------------------------------------------------------------------------------


def test_a_finished_task_keeps_nothing_alive(world):
    class Request:
        pass

    async def app(request, turns):
        for _ in range(turns):
            await Turn()

    def live():
        gc.collect()
        return sum(isinstance(thing, (Request, Task, Waiter)) for thing in gc.get_objects())

    before = live()
    for turns in range(3):
        world.spawn(app(Request(), turns))
    world.settle()
    assert live() == before


def test_a_dropped_async_generator_is_closed_on_the_reactor(world):
    async def numbers():
        try:
            yield 1
        finally:
            await sleep(0)
            world.log.append("closed")

    async def app():
        current_stepper.set(world.stepper)
        async for _ in numbers():
            break
        gc.collect()
        for _ in range(5):
            await Turn()

    world.stepper.run(app())
    assert world.log == ["closed"]


def test_a_step_costs_no_descriptor(world):
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None

    async def app():
        await Turn()

    for _ in range(100):
        world.spawn(app())
    world.settle()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
