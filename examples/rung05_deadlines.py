"""05 · Deadlines and wakeup: two more things to wait for.

Read first:  rung04_buffers, whose Transport and Protocol are used here as they are.
New here:    points in time. The reactor keeps a heap of deadlines and waits no longer than up to
             the first of them. A connection has one deadline, and moving it costs nothing: the
             timer looks when it fires. And the wakeup: one byte in a pair of sockets ends the wait
             early, for a signal (SIGTERM: finish, then stop) or for another thread.
Still wrong: every byte moves the deadline, so that a client that drips one now and then is never
             late. And look at what became of rung 01's two lines: what happens to one client is
             cut into eight methods, and what it waits for must be guessed from attributes.

    IDLE=5 python -m examples.rung05_deadlines 8000
"""

import collections
import functools
import heapq
import itertools
import os
import selectors
import signal
import socket
import sys
import time

from .rung04_buffers import READ, Protocol, listen

IDLE = float(os.environ.get("IDLE", "5"))  # seconds that a client may say nothing
GRACE = 3.0  # seconds that a client has to take what is left when the server stops


class Reactor:
    """Waits for sockets, for points in time, and for a byte that says: look again."""

    def __init__(self, clock=time.monotonic):
        self.clock = clock
        self.selector = selectors.DefaultSelector()
        self.register = self.selector.register  # (sock, interest, handler)
        self.modify, self.unregister = self.selector.modify, self.selector.unregister
        self.timers = []  # a heap of (deadline, serial, handler)
        self.serial = itertools.count()  # of two equal deadlines the one armed first fires first
        self.ready = collections.deque()  # what is to be called in this tick or the next
        self.unflushed = set()  # transports with something new to send
        self.wakeup, self.waker = socket.socketpair()
        self.wakeup.setblocking(False)
        self.waker.setblocking(False)
        self.register(self.wakeup, READ, self.on_wakeup)

    def call_at(self, deadline, handler):
        heapq.heappush(self.timers, (deadline, next(self.serial), handler))

    def call_from_thread(self, handler):
        """Call handler in the next tick: the one method that other threads may use."""
        self.ready.append(handler)
        self.waker.send(b"\0")

    def on_wakeup(self, ready):
        self.wakeup.recv(4096)  # the byte has done its work: the wait is over

    def patience(self):
        """Return how long to wait: not at all, up to the first deadline, or for ever (None)."""
        if self.ready:
            return 0
        if self.timers:
            return max(0, self.timers[0][0] - self.clock())
        return None

    def fire_timers(self):
        while self.timers and self.timers[0][0] <= self.clock():
            heapq.heappop(self.timers)[2]()

    def tick(self):
        """One turn: wait, handle what is ready, fire timers, call what was put off, flush."""
        for key, ready in self.selector.select(self.patience()):
            key.data(ready)
        self.fire_timers()
        for _ in range(len(self.ready)):  # only those ready now: what they add has its own turn
            self.ready.popleft()()
        while self.unflushed:
            self.unflushed.pop().flush()


class Server:
    """A listener, the clients that it has brought, and a way to stop in order."""

    def __init__(self, reactor, protocol_class, port, host="127.0.0.1"):
        self.reactor = reactor
        self.clients = set()
        self.listener = listen(reactor, functools.partial(protocol_class, self), port, host)
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, self.on_signal)
        # Python calls on_signal and goes back to waiting. It is this byte that ends the wait.
        signal.set_wakeup_fd(reactor.waker.fileno())

    def on_signal(self, number, frame):
        signal.signal(number, signal.SIG_DFL)  # the second one is not polite
        self.reactor.ready.append(self.stop)

    def stop(self):
        """Accept nobody new, and give those who are here GRACE seconds to take what is theirs."""
        self.reactor.unregister(self.listener)
        self.listener.close()
        for client in self.clients:
            client.transport.close()
        self.reactor.call_at(self.reactor.clock() + GRACE, self.abort)

    def abort(self):
        for client in list(self.clients):
            client.transport.abort()

    def run(self):
        while self.clients or self.listener.fileno() >= 0:
            self.reactor.tick()


class Patient(Protocol):
    """A protocol with a deadline: who says nothing for IDLE seconds is sent away."""

    def __init__(self, server):
        self.server, self.reactor = server, server.reactor

    def connection_made(self, transport):
        super().connection_made(transport)
        self.server.clients.add(self)
        self.move_deadline()
        self.reactor.call_at(self.deadline, self.on_deadline)

    def move_deadline(self):
        self.deadline = self.reactor.clock() + IDLE

    def on_deadline(self):
        if self.reactor.clock() < self.deadline:  # it was moved: look again then
            self.reactor.call_at(self.deadline, self.on_deadline)
        else:
            self.transport.abort()

    def connection_lost(self):
        self.server.clients.discard(self)


class Echo(Patient):
    def data_received(self, data):
        self.move_deadline()
        self.transport.write(data)


if __name__ == "__main__":
    Server(Reactor(), Echo, *sys.argv[:0:-1]).run()
