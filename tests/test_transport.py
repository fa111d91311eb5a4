"""The transport over a socket that plays a script: every short write, every reset, every end."""

from __future__ import annotations

import errno
import itertools
import socket
import struct

import pytest

from selectserve import transport as room
from selectserve.reactor import EVENT_READ, EVENT_WRITE, LOOK, NEVER, Reactor
from selectserve.transport import (
    HIGH_WATERMARK,
    JOIN_LIMIT,
    LINGER_BYTES,
    LINGER_TIME,
    LOW_WATERMARK,
    MAX_PIECES,
    PROGRESS,
    Transport,
)

from .support import HANGUP, FakeClock, FakeSelector, ScriptedSocket

RESET = ConnectionResetError(104, "Connection reset by peer")
AGAIN = BlockingIOError(11, "would block")
TIMEOUT = 60.0


class Protocol:
    """Writes down what the transport calls; ``do`` maps a call to something done inside it."""

    def __init__(self):
        self.calls = []
        self.do = {}

    def note(self, word, *details):
        self.calls.append((word, *details))
        if word in self.do:
            self.do[word]()

    def data_received(self, data):
        assert type(data) is bytes
        self.note("data", data)

    def eof_received(self):
        self.note("eof")

    def connection_lost(self, exc):
        self.note("lost", exc)

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    def words(self):
        """Return the names of the calls."""
        return [call[0] for call in self.calls]


class World:
    """One transport on a scripted socket."""

    def __init__(self, recv=(), send=()):
        self.clock = FakeClock()
        self.selector = FakeSelector(self.clock)
        pair = ScriptedSocket(), ScriptedSocket()
        self.reactor = Reactor(self.selector, self.clock, wakeup_pair=pair)
        self.sock = ScriptedSocket(list(recv), list(send))
        self.protocol = Protocol()
        self.transport = Transport(self.reactor, self.sock, 7, write_timeout=TIMEOUT)
        self.transport.start(self.protocol)

    @property
    def interest(self):
        """What the selector waits for on our socket, 0 when it is not registered."""
        key = self.selector.keys.get(self.sock)
        return 0 if key is None else key.events

    @property
    def armed(self):
        """Tell whether a deadline of the transport runs, with a timer behind it."""
        deadline = self.transport.deadline
        if deadline is None or deadline.at == NEVER:
            return False
        assert deadline.timer in self.timers() and deadline.timer.at <= deadline.at
        return True

    def turn(self, ready=0):
        """Make one turn, with ``ready`` on our socket; no time passes."""
        self.selector.set_ready(self.sock, ready)
        self.reactor.tick(0)

    def pass_time(self, seconds):
        """Let time pass turn by turn, as timers want it."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.reactor.tick(end - self.clock.now)

    def sent_all(self):
        """Return what was sent, after making the socket writable until nothing is left."""
        for _ in range(1000):
            if not self.transport.out:
                return self.sock.sent
            self.turn(EVENT_WRITE)
        raise AssertionError("the transport does not come to an end")

    def timers(self):
        """Return the timers that would do something."""
        return [timer for _, _, timer in self.reactor.timers if timer.action is not None]

    def check_gone(self, exc=None):
        """Nothing may be left of a closed transport; its protocol was told exactly once."""
        transport = self.transport
        assert transport.state == "closed"
        assert self.sock.closed
        assert self.sock.names().count("close") == 1
        assert self.sock not in self.selector.keys
        assert self.timers() == []
        assert (transport.out, transport.out_size) == ([], 0)
        assert transport.deadline is None and transport.on_flushed is None
        assert [call for call in self.protocol.calls if call[0] == "lost"] == [("lost", exc)]
        assert self.protocol.calls[-1][0] == "lost"
        count = len(self.sock.calls)
        transport.write([b"late"])
        transport.close()
        transport.linger()
        transport.abort()
        transport.pause_reading()
        transport.resume_reading()
        transport.flush()
        transport.on_ready(EVENT_WRITE)
        self.reactor.tick(0)
        assert len(self.sock.calls) == count, "the socket is used after it was closed"
        assert self.sock not in self.selector.keys
        assert self.protocol.words().count("lost") == 1


# -- reading ---------------------------------------------------------------------------------------


def test_reads_once_a_turn_what_is_there():
    world = World(recv=[b"ab", b"cd"])
    assert world.interest == EVENT_READ
    world.turn(EVENT_READ)
    assert world.protocol.calls == [("data", b"ab")]
    world.turn(EVENT_READ)
    assert world.protocol.calls[1:] == [("data", b"cd")]


@pytest.mark.parametrize("error", [AGAIN, InterruptedError()])
def test_a_spurious_readiness_is_nothing(error):
    world = World(recv=[error, b"x"])
    world.turn(EVENT_READ)
    assert (world.protocol.calls, world.interest) == ([], EVENT_READ)
    world.turn(EVENT_READ)
    assert world.protocol.calls == [("data", b"x")]


def test_the_end_of_input_is_told_once_and_writing_goes_on():
    world = World(recv=[b"bye", b"", b""])
    world.turn(EVENT_READ)
    world.turn(EVENT_READ)
    assert world.protocol.words() == ["data", "eof"]
    assert world.interest == 0, "a level-triggered selector would report the end for ever"
    world.transport.write([b"answer"])
    world.turn()
    assert world.sock.sent == b"answer"
    assert world.interest == 0
    world.transport.close()
    world.check_gone()


def test_a_short_write_after_the_end_of_input_waits_for_writing_only():
    world = World(recv=[b""], send=[2])
    world.turn(EVENT_READ)
    world.transport.write([b"answer"])
    world.turn()
    assert world.interest == EVENT_WRITE
    assert world.sent_all() == b"answer"
    assert world.interest == 0


def test_reading_stops_and_goes_on():
    world = World(recv=[b"a", b"b"])
    world.transport.pause_reading()
    world.transport.pause_reading()
    assert world.interest == 0
    world.turn(EVENT_READ)
    assert world.protocol.calls == []
    world.transport.resume_reading()
    world.transport.resume_reading()
    assert world.interest == EVENT_READ
    world.turn(EVENT_READ)
    assert world.protocol.words() == ["data"]


# -- writing ---------------------------------------------------------------------------------------


def test_all_that_is_written_in_a_turn_leaves_in_one_call_at_its_end():
    world = World()
    for data in (b"a", b"b", b"c"):
        world.transport.write([data, data.upper()])
    assert world.sock.sent == b""
    world.turn()
    assert world.sock.sent == b"aAbBcC"
    assert world.sock.names() == ["send"]
    assert world.interest == EVENT_READ, "EVENT_WRITE only after a short write"
    assert world.timers() == []


def test_a_single_piece_is_sent_as_it_is():
    world = World()
    pieces = []
    world.sock.send = lambda data: pieces.append(data) or len(data)
    data = b"whole"
    world.transport.write([data])
    world.turn()
    assert pieces == [data] and pieces[0] is data


@pytest.mark.parametrize("vectors", [True, False])
def test_large_pieces_are_not_joined_where_the_system_gathers(vectors, monkeypatch):
    monkeypatch.setattr(room, "HAVE_SENDMSG", vectors)
    world = World()
    calls = []
    real = world.sock.sendmsg
    world.sock.sendmsg = lambda pieces: calls.append(len(pieces)) or real(pieces)
    pieces = [bytes([65 + n % 26]) * 700 for n in range(MAX_PIECES + 20)]
    assert JOIN_LIMIT < sum(map(len, pieces)) < HIGH_WATERMARK
    world.transport.write(list(pieces))
    world.turn()
    assert world.sent_all() == b"".join(pieces)
    # all in the first call, or the first 64 pieces and then the rest
    assert calls == ([MAX_PIECES] if vectors else [])
    assert len(world.sock.calls) == (2 if vectors else 1)
    assert world.interest == EVENT_READ


@pytest.mark.parametrize("steps", list(itertools.product([AGAIN, 0, 1, 3, 4], repeat=3)))
def test_short_writes_lose_and_repeat_nothing(steps):
    world = World(send=steps)
    world.transport.write([b"abc", b"", b"defg", b"h"])
    world.turn()
    for number in range(10):
        left = b"abcdefgh"[len(world.sock.sent) :]
        assert b"".join(map(bytes, world.transport.out)) == left
        assert world.transport.out_size == len(left)
        assert bool(world.interest & EVENT_WRITE) == bool(left)
        assert world.armed == bool(left)
        if number == 1:  # more comes while the socket is full: behind what waits
            world.transport.write([b"ij", b"k"])
            assert world.sock.sent + b"".join(map(bytes, world.transport.out)) == b"abcdefghijk"
            break
        world.turn(EVENT_WRITE)
    world.turn()
    assert world.sent_all() == b"abcdefghijk"
    assert world.interest == EVENT_READ
    assert not world.armed


def test_nothing_is_sent_by_a_flush_while_the_socket_is_full():
    world = World(send=[1, AGAIN])
    world.transport.write([b"abc"])
    world.turn()
    calls = len(world.sock.calls)
    world.transport.write([b"d"])
    world.turn()
    world.turn()
    assert len(world.sock.calls) == calls
    assert world.sent_all() == b"abcd"


def test_readable_and_writable_in_one_turn():
    world = World(recv=[b"x"], send=[1])
    world.transport.write([b"abc"])
    world.turn()
    world.turn(EVENT_READ | EVENT_WRITE)
    assert world.protocol.words() == ["data"]
    assert world.sock.sent == b"abc"


def test_watermarks_pause_once_above_and_resume_once_below():
    world = World(send=[AGAIN])
    transport = world.transport
    transport.write([b"x" * HIGH_WATERMARK])
    world.turn()
    assert world.protocol.calls == [] and not transport.writing_paused
    transport.write([b"y"])
    assert world.protocol.words() == ["pause"] and transport.writing_paused
    transport.write([b"z"])
    assert world.protocol.words() == ["pause"]
    world.sock.to_accept = [HIGH_WATERMARK + 2 - LOW_WATERMARK - 1, 1, 1, AGAIN]
    world.turn(EVENT_WRITE)
    assert (transport.out_size, transport.writing_paused) == (LOW_WATERMARK + 1, True)
    world.turn(EVENT_WRITE)
    assert (transport.out_size, transport.writing_paused) == (LOW_WATERMARK, False)
    assert world.protocol.words() == ["pause", "resume"]
    world.turn(EVENT_WRITE)
    assert world.protocol.words() == ["pause", "resume"]
    assert world.sent_all() == b"x" * HIGH_WATERMARK + b"yz"


def test_above_the_watermark_the_socket_is_tried_before_anybody_waits():
    world = World()
    world.transport.write([b"x" * (HIGH_WATERMARK + 1)])
    assert len(world.sock.sent) == HIGH_WATERMARK + 1
    assert world.protocol.calls == []
    world.turn()
    assert world.sock.names() == ["send"]


def test_what_is_written_in_resume_comes_behind():
    world = World(send=[AGAIN])
    world.protocol.do["resume"] = lambda: world.transport.write([b"last"])
    world.transport.write([b"x" * (HIGH_WATERMARK + 1)])
    world.turn(EVENT_WRITE)
    world.turn()
    assert world.sent_all() == b"x" * (HIGH_WATERMARK + 1) + b"last"


def test_on_flushed_comes_when_the_last_byte_left_and_once():
    world = World(send=[3, 1])
    log = []
    world.transport.write([b"abcdef"])
    world.transport.on_flushed = lambda: log.append(world.sock.sent)
    world.turn()
    world.turn(EVENT_WRITE)
    assert log == []
    world.turn(EVENT_WRITE)
    assert log == [b"abcdef"]
    world.transport.write([b"more"])
    world.turn()
    assert log == [b"abcdef"]


def test_on_flushed_comes_behind_the_loss_when_nothing_leaves_any_more():
    world = World(send=[3, RESET])
    world.transport.write([b"abcdef"])
    world.transport.on_flushed = lambda: world.protocol.calls.insert(0, ("flushed",))
    world.turn()
    world.turn(EVENT_WRITE)
    assert world.protocol.words() == ["flushed", "lost"]


# -- the write deadline ----------------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_aborted_at_the_deadline():
    world = World(send=[10, AGAIN])
    world.transport.write([b"x" * 100])
    world.turn()
    world.pass_time(TIMEOUT - 0.01)
    assert world.transport.state == "open"
    world.pass_time(0.02)
    assert (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)) in world.sock.options
    assert world.clock.now == pytest.approx(1000 + TIMEOUT, abs=0.02)
    world.check_gone()


def test_a_dribble_is_no_progress():
    """A byte a second keeps a connection no longer than silence does."""
    world = World()
    world.sock.to_accept = [AGAIN] + [1] * 1000
    world.transport.write([b"x" * 10_000])
    world.turn()
    while world.transport.state == "open":
        world.pass_time(1)
        world.selector.set_ready(world.sock, EVENT_WRITE)
        world.reactor.tick(0)
    assert world.clock.now - 1000 == pytest.approx(TIMEOUT, abs=1.01)
    world.check_gone()


def test_progress_moves_the_write_deadline():
    world = World()
    half = PROGRESS // 2
    world.sock.to_accept = [AGAIN] + [half] * 8 + [AGAIN] * 9
    world.transport.write([b"x" * (half * 9)])
    world.turn()
    for _ in range(8):
        world.pass_time(TIMEOUT / 2 - 1)
        world.turn(EVENT_WRITE)
        assert world.transport.state == "open"
    world.pass_time(TIMEOUT + 1)
    assert 1000 + TIMEOUT * 4 < world.clock.now < 1000 + TIMEOUT * 6
    world.check_gone()


def test_after_all_was_sent_no_deadline_is_left():
    world = World(send=[1])
    world.transport.write([b"abc"])
    world.turn()
    assert world.armed
    world.sent_all()
    world.pass_time(TIMEOUT * 3)
    assert world.transport.state == "open"


# -- the ways out ----------------------------------------------------------------------------------


def test_close_with_nothing_to_write():
    world = World()
    world.transport.close()
    assert world.sock.names() == ["shutdown", "close"]
    world.check_gone()


def test_close_sends_what_is_left_and_reads_no_more():
    world = World(recv=[b"unread"], send=[2])
    world.transport.write([b"answer"])
    world.transport.close()
    assert world.transport.state == "closing" and world.interest == 0
    world.transport.write([b"too late"])
    world.turn(EVENT_READ)
    assert world.interest == EVENT_WRITE
    assert world.sent_all() == b"answer"
    assert world.protocol.words() == ["lost"]
    world.check_gone()


def test_a_client_that_does_not_read_the_last_words_is_aborted():
    world = World(send=[2, AGAIN])
    world.transport.write([b"answer"])
    world.transport.close()
    world.turn()
    world.pass_time(TIMEOUT + 0.1)
    world.check_gone()


def test_abort_sends_nothing_and_resets():
    world = World()
    world.transport.write([b"answer"])
    world.transport.abort()
    world.turn()
    assert world.sock.sent == b""
    assert world.sock.options == [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))]
    world.check_gone()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this kernel cannot be told when")
def test_a_client_that_ended_its_side_is_asked_whether_it_is_there():
    """Seen on loopback: one that has closed its socket is told as gone 70 seconds later."""
    world = World()
    world.transport.probe()
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in world.sock.options
    assert (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10) in world.sock.options


@pytest.mark.parametrize("call", ["abort", "probe"])
def test_options_of_a_socket_that_was_reset_already(call):
    world = World()

    def setsockopt(*option):
        raise OSError(22, "Invalid argument")

    world.sock.setsockopt = setsockopt
    getattr(world.transport, call)()
    world.transport.abort()
    world.check_gone()


def test_linger_ends_our_side_and_discards_until_the_client_ends_its_own():
    world = World(recv=[b"x" * 100, b"y", b""])
    world.transport.write([b"answer"])
    world.transport.linger()
    assert world.sock.names() == []
    world.turn()
    assert world.sock.names() == ["send", "shutdown"]
    assert world.sock.calls[-1] == ("shutdown", socket.SHUT_WR)
    for _ in range(2):
        world.turn(EVENT_READ)
        assert world.transport.state == "lingering"
    world.turn(EVENT_READ)
    assert world.protocol.words() == ["lost"], "nothing that is discarded reaches the protocol"
    world.check_gone()


def test_linger_with_nothing_to_write_half_closes_at_once():
    world = World()
    world.transport.linger()
    assert world.sock.names() == ["shutdown"]
    world.pass_time(LINGER_TIME + 0.01)
    assert world.clock.now == pytest.approx(1000 + LINGER_TIME, abs=0.02)
    world.check_gone()


def test_linger_has_its_time_only_once_the_answer_has_gone():
    world = World(send=[2])
    world.transport.write([b"answer"])
    world.transport.linger()
    world.turn()
    world.pass_time(TIMEOUT - 1)
    assert world.sent_all() == b"answer"
    assert world.sock.calls[-1] == ("shutdown", socket.SHUT_WR)
    world.pass_time(LINGER_TIME - 0.1)
    assert world.transport.state == "lingering"
    world.pass_time(0.2)
    world.check_gone()


def test_linger_of_an_answer_that_is_never_read_is_aborted():
    world = World(send=[2, AGAIN])
    world.transport.write([b"answer"])
    world.transport.linger()
    world.turn()
    world.pass_time(TIMEOUT + 0.1)
    assert "shutdown" not in world.sock.names()
    world.check_gone()


def test_linger_lets_the_client_say_only_so_much():
    world = World(recv=[b"x" * 65536] * 100)
    world.transport.linger()
    turns = 0
    while world.transport.state == "lingering":
        world.turn(EVENT_READ)
        turns += 1
    assert turns == LINGER_BYTES // 65536
    world.check_gone()


def test_linger_while_the_client_talks_and_does_not_read():
    """Its bytes are thrown away, but our last words keep their time."""
    world = World(recv=[b"x" * 65536] * 100, send=[1, AGAIN])
    world.transport.write([b"answer"])
    world.transport.linger()
    for _ in range(30):
        world.turn(EVENT_READ)
    assert world.transport.state == "lingering"
    world.sock.to_accept = []
    world.turn(EVENT_READ | EVENT_WRITE)
    assert world.sock.sent == b"answer"
    world.turn(EVENT_READ)
    world.check_gone()


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_linger_with_a_client_that_has_ended_its_side_closes_behind_the_last_byte(when):
    world = World(recv=[b"", b""], send=[2])
    if when == "before":
        world.turn(EVENT_READ)
    world.transport.write([b"answer"])
    world.transport.linger()
    world.turn()
    world.turn(EVENT_READ)
    assert world.transport.state == "lingering"
    assert world.interest == EVENT_WRITE, "the end of input must not be reported for ever"
    world.turn(EVENT_WRITE)
    assert world.sock.sent == b"answer"
    world.check_gone()


def test_pausing_and_resuming_do_nothing_to_a_lingering_transport():
    world = World(recv=[b"x"], send=[2])
    world.transport.write([b"answer"])
    world.transport.linger()
    world.transport.resume_reading()
    world.turn(EVENT_READ)
    assert world.protocol.calls == []
    assert world.sent_all() == b"answer"
    assert world.transport.state == "lingering"


def test_linger_discards_whatever_holds_the_reading():
    """Memory is short and nothing is read: to close over it would reset, and the answer be lost."""
    world = World(recv=[b"x" * 100, b"y", b""])
    world.transport.hold_reading(True)
    world.transport.write([b"answer"])
    world.transport.linger()
    world.transport.hold_reading(True)  # still
    assert world.interest == EVENT_READ
    world.turn()
    for _ in range(3):
        assert world.transport.state == "lingering"
        world.turn(EVENT_READ)
    assert world.sent_all() == b"answer" and world.protocol.words() == ["lost"]
    world.check_gone()


# -- resets at every point -------------------------------------------------------------------------


LIVES = {
    "read": lambda world: world.turn(EVENT_READ),
    "write": lambda world: (world.transport.write([b"abc"]), world.turn()),
    "write much": lambda world: world.transport.write([b"x" * (HIGH_WATERMARK + 1)]),
    "write on": lambda world: world.turn(EVENT_READ | EVENT_WRITE),
    "close": lambda world: (world.transport.close(), world.turn(EVENT_WRITE)),
    "linger": lambda world: (world.transport.linger(), world.turn(EVENT_WRITE | EVENT_READ)),
}


@pytest.mark.parametrize("life", list(itertools.permutations(LIVES, 3)), ids=",".join)
def test_a_reset_at_any_call_loses_the_connection_once(life):
    """Play the same life again and again, with a reset in place of the first, second… call."""
    for point in range(20):
        world = World(recv=[b"data"] * 9, send=[2, AGAIN, 1, 5, 3])
        calls = itertools.count()

        def broken(call, counter=calls, fatal=point):
            def perform(*arguments):
                if next(counter) == fatal:
                    raise RESET
                return call(*arguments)

            return perform

        for name in ("recv", "send", "sendmsg", "shutdown"):
            setattr(world.sock, name, broken(getattr(world.sock, name)))
        for part in life:
            LIVES[part](world)
        reached = next(calls) > point
        assert ("lost", RESET) in world.protocol.calls or not reached
        if reached:
            world.check_gone(RESET)
        else:
            break
    else:
        raise AssertionError("this life never ends")


@pytest.mark.parametrize("inside", ["data", "eof", "pause", "resume"])
@pytest.mark.parametrize("end", ["close", "linger", "abort"])
def test_the_protocol_may_end_the_connection_inside_any_call(inside, end):
    world = World(recv=[b"data", b""], send=[AGAIN])
    world.protocol.do[inside] = lambda: getattr(world.transport, end)()
    world.turn(EVENT_READ)
    world.turn(EVENT_READ)
    world.transport.write([b"x" * (HIGH_WATERMARK + 1)])
    world.turn(EVENT_READ | EVENT_WRITE)
    world.turn(EVENT_READ | EVENT_WRITE)
    world.pass_time(LINGER_TIME + 0.1)
    world.check_gone()


def test_both_readinesses_of_a_turn_in_which_reading_ended_the_connection():
    """The mask was computed before: the socket of a closed transport is not touched."""
    world = World(recv=[RESET], send=[1])
    world.transport.write([b"abc"])
    world.turn()
    count = len(world.sock.calls)
    world.turn(EVENT_READ | EVENT_WRITE)
    assert [call[0] for call in world.sock.calls[count:]] == ["recv", "close"]
    world.check_gone(RESET)


@pytest.mark.parametrize("why", ["paused", "held", "ended"])
@pytest.mark.parametrize("error", [errno.ECONNRESET, 0], ids=["reset", "closed"])
def test_who_is_gone_while_nothing_is_read_is_noticed(why, error):
    world = World(recv=[b""])
    if why == "paused":
        world.transport.pause_reading()
    elif why == "held":
        world.transport.hold_reading(True)
    else:
        world.turn(EVENT_READ)
    assert world.interest == 0 and world.sock in world.selector.keys
    world.turn(EVENT_READ)
    assert world.transport.state == "open", "more bytes, or a half-close, are no end"
    world.sock.error = error
    world.turn(HANGUP)
    (told,) = [call[1] for call in world.protocol.calls if call[0] == "lost"]
    assert told.errno == error or (not error and isinstance(told, BrokenPipeError))
    world.check_gone(told)


def test_who_is_looked_after_is_closed_only_when_gone():
    world = World()
    world.transport.pause_reading()
    world.transport.on_hangup(LOOK)
    assert world.transport.state == "open"
    world.sock.error = errno.ECONNRESET
    world.transport.on_hangup(LOOK)
    assert world.transport.state == "closed"
    world.transport.on_hangup(LOOK)


def test_a_client_that_closes_costs_no_call_of_the_selector_but_the_last():
    world = World(recv=[b""])
    world.protocol.do["eof"] = world.transport.close
    world.turn(EVENT_READ)
    assert [call[0] for call in world.selector.calls if call[1] is world.sock] == [
        "register",
        "unregister",
    ]


def test_a_bug_in_the_protocol_closes_the_connection_and_is_not_swallowed():
    world = World(recv=[b"data"])

    def broken():
        raise ZeroDivisionError

    world.protocol.do["data"] = broken
    with pytest.raises(ZeroDivisionError):
        world.turn(EVENT_READ)
    world.check_gone()


def test_a_socket_closed_between_the_wait_and_the_flush():
    world = World()
    world.transport.write([b"abc"])
    world.reactor.call_soon(world.transport.abort)
    world.turn()
    assert world.sock.sent == b""
    world.check_gone()


def test_the_trace_tells_the_life():
    words = []
    world = World(recv=[b"x", b""], send=[1])
    world.transport.trace = lambda moment, *details: words.append(moment)
    world.turn(EVENT_READ)
    world.transport.write([b"abc"])
    world.turn()
    world.turn(EVENT_WRITE)
    world.turn(EVENT_READ)
    world.transport.close()
    assert words == ["read", "write", "flush", "flush", "eof", "close"]
