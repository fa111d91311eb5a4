"""Ten thousand conversations, an exact replay, and the proof that each invariant bites."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from selectserve.asgi import HTTPCycle
from selectserve.connection import HTTPConnection
from selectserve.http1 import RequestParser
from selectserve.lifespan import Lifespan
from selectserve.listener import Listener
from selectserve.reactor import Deadline, Reactor
from selectserve.response import ResponseWriter, plain_answer
from selectserve.server import Server
from selectserve.session import WebSocketSession
from selectserve.task import Task, Waiter
from selectserve.transport import UNREGISTERED, Transport
from selectserve.upgrade import WebSocketConnection

from ..support import ROOT
from .checks import count_left
from .story import CLIENTS, run_seed
from .world import Violation

WORLDS = 400
PARTS = 8
SEARCH = 300  # worlds in which a broken server must be found out


@pytest.mark.parametrize("part", range(PARTS))
def test_worlds(part):
    for seed in range(part, WORLDS, PARTS):
        run_seed(seed)


def test_that_is_ten_thousand_conversations():
    assert WORLDS * CLIENTS >= 10_000


def test_a_seed_replays_exactly():
    digests = set()
    for seed in range(10):
        one, two = run_seed(seed), run_seed(seed)
        assert (one.digest, one.turns, one.clock.now) == (two.digest, two.turns, two.clock.now)
        digests.add(one.digest)
    assert len(digests) > 5


def test_a_seed_replays_exactly_in_another_process():
    """Neither the addresses of objects nor the hashes of strings may have a say."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "6"]
    told = [
        subprocess.run(
            command, cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        for seed in ("1", "2")
    ]
    assert [run.returncode for run in told] == [0, 0], told[0].stderr
    assert told[0].stdout == told[1].stdout
    assert f"digest {run_seed(6).digest:08x}" in told[0].stdout.splitlines()[-1]


def test_a_failure_says_how_to_see_it_again(monkeypatch):
    monkeypatch.setattr(Transport, "linger", Transport.abort)
    with pytest.raises(Violation, match=r"seed (\d+): python3 -m tests\.simulation --seed \1$"):
        for seed in range(SEARCH):
            run_seed(seed)


def test_no_object_is_left():
    before = count_left()
    for seed in range(1000, 1003):
        run_seed(seed)
    assert count_left() == before


# -- break the server on purpose: each must be seen ------------------------------------------------


def never(*_arguments):
    """Stand in for a method that is forgotten."""


def keep_too_little(self, sent):
    """Lose a byte of what a short write left."""
    real_keep(self, sent + 1 if sent and self.out_size > sent + 1 else sent)


def lost_with_deadline(self, exc):
    """Forget to disarm when closing."""
    self.deadline = None
    real_lost(self, exc)


def lost_without_a_word(self, exc):
    """Forget to tell the protocol."""
    self.protocol.deadline.close()
    self.protocol = type(self).__init__.__globals__["NO_PROTOCOL"]
    real_lost(self, exc)


def lost_but_not_closed(self, exc):
    """Leak the descriptor."""
    sock, self.sock = self.sock, type("Hole", (), {"close": never, "fileno": lambda self: -1})()
    if self.interest != UNREGISTERED:
        self.reactor.unregister(sock)
        self.interest = UNREGISTERED
    real_lost(self, exc)


def answer_twice(self, cycle):
    """Begin the request that is being answered again."""
    real_complete(self, cycle)
    if self.cycle is None and self.transport.state == "open" and not self.transport.out:
        self.start_cycle(cycle.request)


def begin_with_the_old_method(self, method, http_version, keep_alive):
    """Forget to look whether this request is a HEAD."""
    before = self.head_only
    real_begin(self, method, http_version, keep_alive)
    self.head_only = before


def read_on_after_a_failure(self, exc):
    """Answer, and go on behind the bad byte."""
    self.transport.write([plain_answer(exc.status, exc.reason, self.service.defaults)])
    self.parser.read = RequestParser.read_idle
    self.service.reactor.call_soon(self.read_request)


def take_a_byte_more(self):
    """Read into the next message."""
    if self.buffered > self.body_left > 1:
        self.body_left += 1
    return real_take_body(self)


def release_whoever(self, _result=None):
    """Wake the task whatever it waits for by now."""
    self.released = True
    if self.task is not None:
        self.task.wake()


def set_without_timer(self, at):
    """Note the moment and forget the timer."""
    self.at = at


def disconnect_quietly(self):
    """Note the disconnect and wake nobody."""
    self.disconnected = True


def pipeline_without_order(self, cycle):
    """Go on with the next request before this one is answered."""
    self.cycle = None
    self.service.reactor.call_soon(self.read_request)
    real_body_wanted(self, cycle)


def drain_hastily(self):
    """Cut off whoever is served still."""
    for connection in list(self.service.connections):
        connection.transport.abort()
    return real_drain(self)


def unregister_instead(self, fileobj, interest, handler):
    """Be deaf to the end of whom we do not read."""
    if interest:
        real_modify(self, fileobj, interest, handler)
    else:
        self.unheard[fileobj] = handler
        if self.selector.hears:
            self.selector.unregister(fileobj)


def tell_too_early(self, gently):
    """Close a WebSocket in the first moment of the drain."""
    self.close_with(1012)


def put_twice(self, text, data):
    """Tell a message again."""
    real_put(self, text, data)
    real_put(self, text, data)


def accept_afresh(self, message):
    """Forget the frames that came before the accept."""
    self.early = b""
    real_accept(self, message)


real_put, real_accept = WebSocketSession.put, WebSocketConnection.accept
real_keep, real_lost = Transport.keep, Transport.lost
real_complete = HTTPConnection.response_complete
real_begin = ResponseWriter.begin
real_take_body = RequestParser.take_body
real_body_wanted = HTTPConnection.body_wanted
real_drain = Server.drain
real_modify = Reactor.modify

BREAKAGES = {
    "a lingering close becomes a close": (Transport, "linger", Transport.close),
    "a close becomes an abort": (Transport, "close", Transport.abort),
    "the transport arms no deadline": (Transport, "arm", never),
    "a connection holds no deadline": (HTTPConnection, "wait_for", never),
    "a deadline has no timer": (Deadline, "set", set_without_timer),
    "a deadline is not disarmed": (Deadline, "close", never),
    "a deadline does nothing": (HTTPConnection, "on_deadline", never),
    "the transport's deadline does nothing": (Transport, "on_deadline", never),
    "a short write loses a byte": (Transport, "keep", keep_too_little),
    "closing forgets the deadline": (Transport, "lost", lost_with_deadline),
    "closing tells nobody": (Transport, "lost", lost_without_a_word),
    "closing leaks the descriptor": (Transport, "lost", lost_but_not_closed),
    "reading is never resumed": (Transport, "resume_reading", never),
    "reading is never paused": (Transport, "pause_reading", never),
    "writing is never resumed": (HTTPConnection, "resume_writing", never),
    "waiting sends are not released": (HTTPCycle, "release_waiters", never),
    "the end of input is not told": (HTTPConnection, "eof_received", never),
    "a disconnect wakes nobody": (HTTPCycle, "on_disconnect", disconnect_quietly),
    "a hang-up is not heard": (Transport, "on_hangup", never),
    "a hang-up is not listened for": (Reactor, "modify", unregister_instead),
    "a deaf selector is not helped": (Reactor, "look_after", never),
    "a disconnect is not told": (HTTPConnection, "connection_lost", never),
    "a request is answered twice": (HTTPConnection, "response_complete", answer_twice),
    "pipelined requests run at once": (HTTPConnection, "body_wanted", pipeline_without_order),
    "the method of an old request counts": (ResponseWriter, "begin", begin_with_the_old_method),
    "bytes behind a bad one are parsed": (HTTPConnection, "refuse", read_on_after_a_failure),
    "a body takes a byte of the next head": (RequestParser, "take_body", take_a_byte_more),
    "an old wait ends a new one": (Waiter, "set_result", release_whoever),
    "cancelled tasks are not stepped": (Task, "cancel", never),
    "the app's end is not noticed": (HTTPConnection, "cycle_done", never),
    "idle connections stay at shutdown": (HTTPConnection, "close_if_idle", never),
    "streams are not told of the shutdown": (HTTPConnection, "tell_end", never),
    "the drain cuts everybody off": (Server, "drain", drain_hastily),
    "the lifespan is not shut down": (Lifespan, "put", lambda self, message: None),
    "the listener is not closed": (Listener, "close", never),
    "the listener never tries again": (Listener, "try_again", never),
    "a WebSocket message is told twice": (WebSocketSession, "put", put_twice),
    "frames before the accept are lost": (WebSocketConnection, "accept", accept_afresh),
    "a silent WebSocket is not asked": (WebSocketConnection, "on_deadline", never),
    "a lost WebSocket is not told": (WebSocketConnection, "connection_lost", never),
    "a WebSocket is not closed": (WebSocketConnection, "finish", never),
    "WebSockets go too early at shutdown": (WebSocketConnection, "close_if_idle", tell_too_early),
    "WebSockets stay at shutdown": (WebSocketConnection, "close_with", never),
    "cancelled timers are not counted": (Reactor, "forget_timer", never),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # in a world cut short
@pytest.mark.parametrize("what", BREAKAGES)
def test_a_broken_server_is_found_out(what, monkeypatch):
    owner, name, broken = BREAKAGES[what]
    monkeypatch.setattr(owner, name, broken)
    found = []
    for seed in range(SEARCH):
        try:
            run_seed(seed)
        except Violation as exc:
            found.append(str(exc))
            break
    gc.collect()  # here, where what was cut short may complain
    assert found, f"{SEARCH} worlds did not notice that {what}"
    print(f"{what}: {found[0]}")
