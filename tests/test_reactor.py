"""The reactor: turns, timers, deadlines and wakeups, with a clock and a selector to script."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import threading

import pytest

from selectserve.reactor import (
    EVENT_READ,
    EVENT_WRITE,
    LOOK,
    MAX_FAULTS,
    MAX_PATIENCE,
    MIN_CANCELLED,
    NEVER,
    UNHEARD_INTERVAL,
    Deadline,
    Reactor,
)

from .support import DEADLINE, FakeClock, FakeSelector, ScriptedSocket

SELECTORS = [
    name
    for name in ("EpollSelector", "KqueueSelector", "DevpollSelector", "PollSelector")
    if hasattr(selectors, name)
] + ["SelectSelector"]


class World:
    """A reactor whose clock stands still; ``log`` is what its actions wrote down."""

    def __init__(self):
        self.clock = FakeClock()
        self.selector = FakeSelector(self.clock)
        self.pair = ScriptedSocket(), ScriptedSocket()
        self.reactor = Reactor(self.selector, self.clock, wakeup_pair=self.pair)
        self.log = []

    def note(self, word):
        """Return an action that writes ``word`` down."""
        return lambda *_: self.log.append(word)

    def live_timers(self):
        """Return the entries of the heap that would do something."""
        return [entry for entry in self.reactor.timers if entry[2].action is not None]


@pytest.fixture
def world():
    world = World()
    yield world
    world.reactor.close()


@pytest.fixture(params=SELECTORS)
def real(request):
    """A reactor on each selector that this system has."""
    reactor = Reactor(getattr(selectors, request.param)())
    yield reactor
    reactor.close()


@pytest.fixture
def pair():
    one, two = socket.socketpair()
    one.setblocking(False)
    two.setblocking(False)
    yield one, two
    one.close()
    two.close()


class Flush:
    """Something that waits to be flushed."""

    def __init__(self, action):
        self.flush = action


# -- one turn --------------------------------------------------------------------------------------


def test_one_turn_handles_then_fires_then_steps_then_flushes(world):
    reactor = world.reactor
    sock = ScriptedSocket()
    reactor.register(sock, EVENT_READ, world.note("handler"))
    reactor.call_at(world.clock.now, world.note("timer"))
    reactor.call_soon(world.note("ready"))
    reactor.unflushed.append(Flush(world.note("flush")))
    world.selector.set_ready(sock, EVENT_READ)
    reactor.tick()
    assert world.log == ["handler", "timer", "ready", "flush"]


def test_what_becomes_ready_in_a_turn_waits_for_the_next(world):
    reactor = world.reactor

    def again():
        world.log.append(len(world.log))
        reactor.call_soon(again)

    reactor.call_soon(again)
    reactor.tick()
    assert world.log == [0]
    reactor.tick()
    assert world.log == [0, 1]
    assert world.selector.waits == [0.0, 0.0]


def test_a_handler_and_a_timer_can_make_something_ready_in_their_own_turn(world):
    reactor = world.reactor
    sock = ScriptedSocket()
    reactor.register(sock, EVENT_READ, lambda _ready: reactor.call_soon(world.note("a")))
    reactor.call_at(0, lambda: reactor.call_soon(world.note("b")))
    world.selector.set_ready(sock, EVENT_READ)
    reactor.tick()
    assert world.log == ["a", "b"]


def test_what_is_flushed_may_ask_for_another_flush(world):
    unflushed = world.reactor.unflushed
    unflushed.append(Flush(lambda: unflushed.append(Flush(world.note("second")))))
    world.reactor.tick()
    assert world.log == ["second"]
    assert unflushed == []


@pytest.mark.parametrize("seconds", [0.0005, 0.02])
def test_an_answer_does_not_wait_for_the_slow_steps_of_others(world, seconds):
    """Of three handlers and three actions, all of which write; a short turn sends once."""
    reactor = world.reactor

    def answer(name):
        world.log.append(name)
        world.clock.now += seconds
        reactor.unflushed.append(Flush(world.note("flush")))

    for name in "abc":
        sock = ScriptedSocket()
        reactor.register(sock, EVENT_READ, lambda _ready, name=name: answer(name))
        world.selector.set_ready(sock, EVENT_READ)
    for name in "def":
        reactor.call_soon(lambda name=name: answer(name))
    reactor.tick()
    at_once = [word for name in "abcdef" for word in (name, "flush")]
    short = [*"abcdef", *["flush"] * 6]
    assert world.log == (at_once if seconds > 0.005 else short)


def test_the_mask_says_what_is_ready_and_interest_what_is_asked(world):
    reactor = world.reactor
    sock = ScriptedSocket()
    reactor.register(sock, EVENT_READ, world.log.append)
    for interest in (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE):
        reactor.modify(sock, interest, world.log.append)
        world.selector.set_ready(sock, EVENT_READ | EVENT_WRITE)
        reactor.tick()
    reactor.unregister(sock)
    world.selector.set_ready(sock, EVENT_READ | EVENT_WRITE)
    reactor.tick(0)
    assert world.log == [EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE]


def test_now_is_read_once_a_turn_after_the_wait(world):
    reactor = world.reactor
    reactor.call_later(5, lambda: world.log.append(reactor.now))
    reactor.tick()
    assert world.log == [1005.0] == [reactor.now]


# -- how long a turn waits -------------------------------------------------------------------------


def test_patience(world):
    reactor = world.reactor
    assert reactor.patience() is None
    reactor.call_later(MAX_PATIENCE * 3, int)
    assert reactor.patience() == MAX_PATIENCE
    reactor.call_later(7.5, int)
    assert reactor.patience() == 7.5
    world.clock.advance(10)
    assert reactor.patience() == 0.0
    reactor.tick()
    reactor.call_soon(int)
    assert reactor.patience() == 0.0
    reactor.tick()
    reactor.unflushed.append(Flush(int))
    assert reactor.patience() == 0.0


def test_an_idle_reactor_makes_one_system_call_between_its_timers(world):
    reactor = world.reactor
    for delay in (30, 60, 90):
        reactor.call_later(delay, world.note(delay))
    while len(world.log) < 3:
        reactor.tick()
    assert world.selector.waits == [30, 30, 30]
    assert [call[0] for call in world.selector.calls] == ["register"]  # the wakeup pair
    assert world.pair[0].calls[1:] == world.pair[1].calls[1:] == []


def test_a_host_can_bound_the_wait_and_look_without_waiting(world):
    reactor = world.reactor
    reactor.call_later(10, world.note("late"))
    reactor.tick(0)
    reactor.tick(4)
    assert (world.selector.waits, world.log) == ([0, 4], [])
    reactor.tick(100)
    assert (world.selector.waits, world.log) == ([0, 4, 6], ["late"])
    reactor.tick(0)  # nothing to wait for, and not for ever
    assert world.selector.waits[-1] == 0


# -- timers ----------------------------------------------------------------------------------------


def test_timers_fire_in_the_order_of_their_moments_and_then_of_their_making(world):
    reactor = world.reactor
    for at in (1003, 1001, 1002):
        reactor.call_at(at, world.note(at))
    for word in "abc":
        reactor.call_at(1001.5, world.note(word))
    world.clock.advance(2.5)
    reactor.tick()
    assert world.log == [1001, "a", "b", "c", 1002]
    reactor.tick()
    assert world.log[-1] == 1003
    assert reactor.timers == []


def test_a_timer_that_fires_late_fires_once(world):
    world.reactor.call_later(1, world.note("once"))
    world.clock.advance(1e6)
    world.reactor.tick()
    world.reactor.tick(0)
    assert world.log == ["once"]


def test_a_timer_set_for_now_by_a_timer_fires_in_the_same_turn(world):
    reactor = world.reactor
    reactor.call_later(1, lambda: reactor.call_at(reactor.now, world.note("same")))
    reactor.tick()
    assert world.log == ["same"]


def test_a_cancelled_timer_is_forgotten_even_by_a_timer_of_its_own_turn(world):
    reactor = world.reactor
    second = reactor.call_at(1002, world.note("second"))
    reactor.call_at(1001, second.cancel)
    third = reactor.call_at(1003, world.note("third"))
    third.cancel()
    third.cancel()
    world.clock.advance(5)
    reactor.tick()
    second.cancel()  # after it came up
    assert world.log == []
    assert reactor.timers == [] and reactor.cancelled_timers == 0


def test_cancelling_after_firing_counts_nothing(world):
    timer = world.reactor.call_later(1, world.note("fired"))
    world.reactor.tick()
    timer.cancel()
    assert world.log == ["fired"]
    assert world.reactor.cancelled_timers == 0


def test_cancelled_timers_are_swept_out_when_they_are_the_most(world):
    reactor = world.reactor
    kept = [reactor.call_later(1000 + n, world.note(n)) for n in range(10)]
    peak = 0
    for n in range(5000):
        reactor.call_later(500 + n, world.note("wrong")).cancel()
        peak = max(peak, len(reactor.timers))
    assert peak <= 2 * MIN_CANCELLED + 2 * len(kept)
    assert len(world.live_timers()) == len(kept)
    assert reactor.cancelled_timers == len(reactor.timers) - len(kept)
    world.clock.advance(1e5)
    reactor.tick()
    assert world.log == list(range(10))
    assert reactor.timers == [] and reactor.cancelled_timers == 0


def test_sweeping_while_timers_fire_loses_none(world):
    reactor = world.reactor
    doomed = [reactor.call_at(1500, world.note("wrong")) for _ in range(MIN_CANCELLED * 3)]

    def cancel_all():
        for timer in doomed:
            timer.cancel()

    reactor.call_at(1001, cancel_all)
    reactor.call_at(1001, world.note("behind"))
    reactor.call_at(1600, world.note("last"))
    world.clock.advance(700)
    reactor.tick()
    assert world.log == ["behind", "last"]
    assert reactor.timers == [] and reactor.cancelled_timers == 0


# -- deadlines -------------------------------------------------------------------------------------


def test_a_deadline_is_called_once_at_its_moment(world):
    deadline = Deadline(world.reactor, world.note("reached"))
    deadline.set(1005)
    world.reactor.tick()
    assert (world.log, world.clock.now, deadline.at) == (["reached"], 1005, NEVER)
    world.reactor.tick(0)
    assert (world.log, world.reactor.timers) == (["reached"], [])


def test_moving_a_deadline_on_costs_no_heap_operation(world):
    """A kept connection moves its deadline twice a request, for years."""
    reactor = world.reactor
    deadline = Deadline(reactor, world.note("reached"))
    looks = next(reactor.timer_numbers)
    for _ in range(10_000):
        deadline.set(world.clock.now + 5)
        deadline.set(NEVER)
        deadline.set(world.clock.now + 15)
        world.clock.advance(0.01)
        reactor.tick(0)
        assert len(world.live_timers()) <= 1
    assert world.log == []
    assert next(reactor.timer_numbers) - looks < 50  # of 30,000 moves: a few every 5 s of 100 s
    while not world.log:  # entries that come up too early are turns, too
        reactor.tick()
    assert world.clock.now == pytest.approx(1000 + 9999 * 0.01 + 15)


def test_a_deadline_can_be_moved_forward_and_back(world):
    reactor = world.reactor
    deadline = Deadline(reactor, lambda: world.log.append(world.clock.now))
    deadline.set(1010)
    deadline.set(1003)  # sooner: the old entry is cancelled
    reactor.tick()
    assert world.log == [1003]
    deadline.set(1010)
    deadline.set(1020)  # later: the entry comes up too early and is moved
    reactor.tick()
    assert (world.clock.now, world.log) == (1010, [1003])
    reactor.tick()
    assert world.log == [1003, 1020]


def test_a_disarmed_deadline_is_not_called_and_can_be_armed_again(world):
    reactor = world.reactor
    deadline = Deadline(reactor, world.note("reached"))
    deadline.set(1005)
    deadline.set(NEVER)
    reactor.tick()  # the entry comes up and finds nothing to do
    assert (world.log, world.clock.now, reactor.timers) == ([], 1005, [])
    deadline.set(1006)
    reactor.tick()
    assert world.log == ["reached"]


def test_a_closed_deadline_holds_nothing(world):
    deadline = Deadline(world.reactor, world.note("reached"))
    deadline.set(1005)
    deadline.close()
    deadline.close()
    assert deadline.action is None and deadline.timer is None
    assert world.live_timers() == []
    world.clock.advance(100)
    world.reactor.tick(0)
    assert world.log == []


def test_a_deadline_may_close_itself_or_move_on_when_reached(world):
    reactor = world.reactor

    def move_on():
        world.log.append(reactor.now)
        deadline.set(reactor.now + 100)

    deadline = Deadline(reactor, move_on)
    deadline.set(1005)
    reactor.tick()
    reactor.tick()
    assert world.log == [1005, 1105]
    deadline.action = lambda: (world.log.append("end"), deadline.close())
    reactor.tick()
    assert world.log[2:] == ["end"]
    assert world.live_timers() == []


# -- wakeup ----------------------------------------------------------------------------------------


def test_the_wakeup_pair_is_emptied_and_tells_signals(world):
    receiver, _ = world.pair
    world.reactor.on_signal = world.log.append
    receiver.to_receive = [b"\0\0\x02\0\x0f"]
    world.selector.set_ready(receiver, EVENT_READ)
    world.reactor.tick()
    assert world.log == [2, 15]
    world.selector.set_ready(receiver, EVENT_READ)  # a spurious readiness: recv would block
    world.reactor.tick()
    assert world.log == [2, 15]


@pytest.mark.parametrize("error", [BlockingIOError(), OSError("closed")])
def test_a_wakeup_never_raises(world, error):
    world.pair[1].to_accept = [error]
    world.reactor.call_from_thread(world.note("called"))
    world.reactor.tick()
    assert world.log == ["called"]


def test_the_pair_cannot_block_the_reactor(real):
    for _ in range(20_000):
        real.wakeup()
    real.tick()


def test_another_thread_ends_the_wait(real):
    log = []
    entered = threading.Event()

    def call():
        entered.wait(DEADLINE)
        real.call_from_thread(lambda: log.append(threading.get_ident()))

    thread = threading.Thread(target=call)
    thread.start()
    guard = real.call_later(DEADLINE, lambda: log.append("too late"))
    real.call_soon(entered.set)
    while not log:
        real.tick()
    thread.join()
    guard.cancel()
    assert log == [threading.get_ident()]


def test_many_threads_lose_no_call(real):
    log = []
    threads = [
        threading.Thread(
            target=lambda: [real.call_from_thread(lambda: log.append(1)) for _ in range(500)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    real.call_later(DEADLINE, real.stop)
    while len(log) < 4000 and real.timers:
        real.tick()
    for thread in threads:
        thread.join()
    assert len(log) == 4000


@pytest.mark.skipif(os.name != "posix", reason="signals reach a wakeup descriptor on POSIX only")
def test_a_signal_ends_the_wait(real):
    log = []
    real.on_signal = log.append
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    descriptor = signal.set_wakeup_fd(real.wakeup_sender.fileno(), warn_on_full_buffer=False)
    try:
        real.call_soon(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        guard = real.call_later(DEADLINE, lambda: log.append("too late"))
        while not log:
            real.tick()
        guard.cancel()
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGUSR1, previous)
    assert log == [signal.SIGUSR1]


# -- the selectors of this system ------------------------------------------------------------------


def test_readiness_of_a_real_socket(real, pair):
    one, two = pair
    log = []
    real.register(one, EVENT_READ, log.append)
    real.tick(0)
    assert log == []
    two.send(b"x")
    real.tick()
    assert log == [EVENT_READ]
    real.tick()  # level-triggered: nobody read it
    assert log == [EVENT_READ, EVENT_READ]
    real.modify(one, EVENT_READ | EVENT_WRITE, log.append)
    real.tick()
    assert log[-1] == EVENT_READ | EVENT_WRITE
    one.recv(10)
    real.tick()
    assert log[-1] == EVENT_WRITE
    real.unregister(one)
    real.tick(0)
    assert len(log) == 4


def test_a_real_wait_lasts_as_long_as_it_should(real):
    log = []
    begin = real.clock()
    real.call_later(0.05, lambda: log.append(real.clock() - begin))
    while not log:
        real.tick()
    assert log[0] >= 0.05


def test_the_end_of_the_other_side_makes_readable(real, pair):
    one, two = pair
    log = []
    real.register(one, EVENT_READ, log.append)
    two.close()
    real.tick()
    assert log == [EVENT_READ]
    real.unregister(one)


def test_without_an_interest_only_the_end_is_told(real):
    """epoll and poll tell it unasked and at once; for the others a timer has us look."""
    listener = socket.create_server(("127.0.0.1", 0))
    two = socket.create_connection(listener.getsockname())
    one, _ = listener.accept()
    log = []

    def handler(ready):
        log.append(ready)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or ready == 0:
            real.unregister(one)
            log.append("gone")

    real.register(one, EVENT_READ, handler)
    real.modify(one, 0, handler)
    deaf = one in real.unheard
    assert deaf == (type(real.selector).__name__ in ("SelectSelector", "KqueueSelector"))
    two.send(b"data")
    real.tick(0.02)
    two.shutdown(socket.SHUT_WR)
    real.tick(0.02)
    assert log == [], "neither data nor a half-close is the end"
    real.modify(one, EVENT_READ, handler)
    assert not real.unheard
    real.tick()
    assert log == [EVENT_READ]
    real.modify(one, 0, handler)
    real.modify(one, 0, handler)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    two.close()
    while "gone" not in log:
        real.tick()
    assert log == [EVENT_READ, LOOK if deaf else 0, "gone"]
    assert not real.unheard and len(real.selector.get_map()) == 1
    one.close()
    listener.close()


def test_who_is_looked_after_has_one_timer_and_it_ends():
    clock, selector, log = FakeClock(), FakeSelector(), []
    real_modify = selector.modify

    def deaf_modify(fileobj, events, data=None):
        if not events:
            selector.unregister(fileobj)
            raise ValueError("Invalid events: 0")
        return real_modify(fileobj, events, data)

    selector.modify, selector.clock = deaf_modify, clock
    reactor = Reactor(selector, clock, wakeup_pair=(ScriptedSocket(), ScriptedSocket()))
    one, two = ScriptedSocket(), ScriptedSocket()
    for sock in one, two:
        reactor.register(sock, EVENT_READ, log.append)
        for _ in range(3):
            reactor.modify(sock, 0, log.append)
            reactor.modify(sock, EVENT_READ, log.append)
        reactor.modify(sock, 0, log.append)
    assert len(reactor.timers) == 1
    for _ in range(3):
        reactor.tick()
    assert (log, clock.now) == ([LOOK] * 6, 1000 + 3 * UNHEARD_INTERVAL)
    for sock in one, two:
        reactor.unregister(sock)
    reactor.tick()
    assert not reactor.timers and not selector.keys.keys() & {one, two}
    reactor.close()


# -- run, stop, faults, close ----------------------------------------------------------------------


def test_run_turns_until_stop_and_ends_the_turn_first(world):
    reactor = world.reactor
    reactor.call_soon(reactor.stop)
    reactor.call_soon(world.note("same turn"))
    reactor.run()
    assert world.log == ["same turn"]
    assert not reactor.running


def test_a_fault_is_told_and_costs_nobody_else_a_turn(world):
    reactor = world.reactor
    reactor.on_fault = lambda exc: world.log.append(repr(exc))

    def broken():
        raise ZeroDivisionError("of ours")

    reactor.call_soon(broken)
    reactor.call_soon(world.note("next"))
    reactor.call_soon(reactor.stop)
    reactor.run()
    assert world.log == ["ZeroDivisionError('of ours')", "next"]


def test_faults_without_end_are_raised(world):
    reactor = world.reactor
    reactor.on_fault = lambda exc: world.log.append(repr(exc))

    def broken(_timeout):
        raise OSError(9, "Bad file descriptor")

    world.selector.select = broken
    with pytest.raises(OSError):
        reactor.run()
    assert world.log == ["OSError(9, 'Bad file descriptor')"] * MAX_FAULTS


def test_faults_with_good_turns_between_go_on(world):
    reactor = world.reactor
    reactor.on_fault = world.log.append

    def broken():
        reactor.call_soon(reactor.stop if len(world.log) == 3 * MAX_FAULTS else good)
        raise ZeroDivisionError("of ours")

    def good():
        reactor.call_soon(broken)

    good()
    reactor.run()
    assert len(world.log) == 3 * MAX_FAULTS + 1


def test_a_fault_nobody_wants_to_hear_of_is_raised(world):
    world.reactor.call_soon(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.reactor.run()


def test_keyboard_interrupt_is_no_fault(world):
    def interrupt():
        raise KeyboardInterrupt

    world.reactor.on_fault = world.note("swallowed")
    world.reactor.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.reactor.run()
    assert world.log == []


def test_close_releases_all(world):
    reactor = world.reactor
    reactor.call_later(5, int)
    reactor.call_soon(int)
    reactor.close()
    assert world.selector.closed
    assert [sock.closed for sock in world.pair] == [True, True]
    assert not (reactor.timers or reactor.ready or reactor.unflushed)


def test_close_leaves_no_descriptor():
    for name in SELECTORS:
        reactor = Reactor(getattr(selectors, name)())
        numbers = [reactor.wakeup_receiver.fileno(), reactor.wakeup_sender.fileno()]
        if hasattr(reactor.selector, "fileno"):
            numbers.append(reactor.selector.fileno())
        reactor.close()
        reactor.wakeup()  # harmless, also afterwards
        for number in numbers:
            with pytest.raises(OSError):
                os.fstat(number)
