"""Waiting awake: when a selector looks before it sleeps, by a clock that goes on as it is read."""

from __future__ import annotations

import selectors
import socket

import pytest

import selectserve
from selectserve.config import Config
from selectserve.eager import WORTH, EagerSelector, make_reactor
from selectserve.server import Server

from .apps import hello

EAGERNESS = 50e-6
READING = EAGERNESS / 4.5  # what passes from one reading of the clock to the next
AWHILE = 1e-3


class Readings:
    """A clock that goes on by ``step`` with each reading; ``at_reading`` says what happens then."""

    def __init__(self):
        self.now = 1000.0
        self.step = READING
        self.count = 0
        self.at_reading = {}

    def __call__(self):
        self.now += self.step
        self.count += 1
        self.at_reading.pop(self.count, int)()
        return self.now


class Wait:
    """An eager selector, and a pair of sockets of which it watches one."""

    def __init__(self):
        self.clock = Readings()
        self.selector = EagerSelector(EAGERNESS, self.clock)
        self.here, self.there = socket.socketpair()
        self.selector.register(self.here, selectors.EVENT_READ, "here")

    def close(self):
        self.selector.close()
        self.here.close()
        self.there.close()

    def select(self, timeout=AWHILE):
        """Return how often the clock was read in one wait, and what was ready."""
        before = self.clock.count
        events = [key.data for key, _ in self.selector.select(timeout)]
        return self.clock.count - before, events

    def short_waits(self, count):
        """Wait for what is there already."""
        self.there.send(b"x")
        for _ in range(count):
            assert self.select(None) == (2, ["here"])
        self.here.recv(1)


@pytest.fixture
def wait():
    wait = Wait()
    yield wait
    wait.close()


SLEPT = (2, [])  # the clock was read before and after it: nobody has looked
LOOKED = (6, [])  # and after each of the looks until the time was over


def test_who_waits_for_the_first_time_sleeps(wait):
    assert wait.select() == SLEPT


def test_after_many_short_waits_it_looks(wait):
    wait.short_waits(WORTH)
    assert wait.select() == LOOKED


def test_a_few_short_waits_are_not_enough(wait):
    wait.short_waits(WORTH - 1)
    assert wait.select() == SLEPT


def test_a_long_wait_between_short_ones_is_none_of_them(wait):
    wait.short_waits(WORTH - 1)
    wait.clock.step = EAGERNESS
    assert wait.select() == SLEPT
    wait.clock.step = READING
    wait.short_waits(WORTH - 1)
    assert wait.select() == SLEPT


def test_what_comes_while_it_looks_is_found_at_once(wait):
    wait.short_waits(WORTH)
    for _ in range(3):  # each time, and not only once
        wait.clock.at_reading[wait.clock.count + 3] = lambda: wait.there.send(b"x")
        assert wait.select(None) == (3, ["here"]), (
            "who slept here without end would be woken by none"
        )
        wait.here.recv(1)


def test_one_look_in_vain_has_to_be_earned_anew(wait):
    wait.short_waits(WORTH)
    assert wait.select() == LOOKED
    wait.short_waits(WORTH - 1)
    assert wait.select() == SLEPT
    wait.short_waits(WORTH)
    assert wait.select() == LOOKED


@pytest.mark.parametrize(
    ("timeout", "looks", "left"),
    [(None, 4, None), (AWHILE, 4, AWHILE - EAGERNESS), (READING * 2.5, 2, 0.0)],
)
def test_no_timer_waits_for_the_looks(wait, monkeypatch, timeout, looks, left):
    asked = []

    def select(selector, timeout):
        asked.append(timeout)
        return []

    wait.short_waits(WORTH)
    monkeypatch.setattr(selectors.DefaultSelector, "select", select)
    wait.selector.select(timeout)
    assert asked == [0.0] * looks + [left]


def test_who_is_told_to_be_calm_sleeps(wait):
    wait.short_waits(WORTH)
    wait.selector.calm()
    assert wait.select() == SLEPT


@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_who_only_looks_does_not_look_longer(wait, timeout):
    wait.short_waits(WORTH)
    assert wait.select(timeout) == (0, [])
    assert wait.select() == LOOKED, "and it costs nothing"


def test_a_thread_that_wakes_the_reactor_has_the_interpreter():
    reactor = make_reactor(50)
    try:
        assert type(reactor.selector) is EagerSelector
        for _ in range(WORTH * 2):
            reactor.selector.short_waits = WORTH
            reactor.call_from_thread(int)
            reactor.tick()
            assert reactor.selector.short_waits == 0
    finally:
        reactor.close()


@pytest.mark.parametrize(("option", "eagerness"), [(None, 50e-6), (200, 200e-6), (0, None)])
def test_the_option_is_in_microseconds(option, eagerness):
    config = Config(hello) if option is None else Config(hello, busy_poll=option)
    reactor = Server(config).reactor
    try:
        assert getattr(reactor.selector, "eagerness", None) == eagerness
    finally:
        reactor.close()


@pytest.mark.parametrize(("options", "eagerness"), [({}, None), ({"busy_poll": 20}, 20e-6)])
def test_a_guest_in_a_program_leaves_it_its_processors(options, eagerness):
    with selectserve.serving(hello, **options) as served:
        assert getattr(served.server.reactor.selector, "eagerness", None) == eagerness
