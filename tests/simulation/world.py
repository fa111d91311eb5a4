"""world: a kernel and a network in one thread, in which time passes only when nobody is ready.

The world is the server's selector. The server calls ``select`` between two turns, and there all
the rest happens: the invariants are checked, clients whose moment has come act, time passes. What
a real kernel may do it does here at random: short reads and writes, EAGAIN where readiness was
promised, readiness told late or in another order, resets that overtake data.
"""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import zlib

from selectserve.config import Config
from selectserve.reactor import EVENT_READ, EVENT_WRITE, Reactor
from selectserve.server import Server

from ..support import FakeClock

MAX_TURNS = 200_000  # of one world; far above what any needs
NEVER = float("inf")


class Violation(AssertionError):
    """An invariant does not hold."""


class OrderedSet(dict):
    """A set in the order of insertion: the order of a set of objects differs from run to run."""

    def add(self, item):
        self[item] = None

    def discard(self, item):
        self.pop(item, None)


class Plug:
    """What all sockets of this world have."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM

    def __init__(self, world):
        self.world = world
        self.number = next(world.numbers)
        self.closed = False
        world.plugs.append(self)

    def __repr__(self):
        return f"<{type(self).__name__} {self.number}{' closed' if self.closed else ''}>"

    def open(self):
        """A descriptor that was closed may be somebody else's by now."""
        if self.closed:
            raise Violation(f"{self!r} is used after it was closed")

    def fileno(self):
        return -1 if self.closed else self.number

    def setblocking(self, blocking):
        self.open()

    def getsockname(self):
        self.open()
        return "127.0.0.1", 8000

    def close(self):
        self.closed = True


class Wakeup(Plug):
    """Either end of the wakeup pair; signals are put into the receiving one."""

    def __init__(self, world):
        super().__init__(world)
        self.data = bytearray()

    def recv(self, size):
        self.open()
        if not self.data:
            raise BlockingIOError
        data = bytes(self.data[:size])
        del self.data[:size]
        return data

    def send(self, data):
        self.world.wakeup.data += data
        return len(data)

    def readiness(self):
        return EVENT_READ if self.data else 0


class Gate(Plug):
    """The listening socket; ``backlog`` are the links that wait to be accepted."""

    def __init__(self, world):
        super().__init__(world)
        self.backlog = []
        self.listening = False
        self.was_opened = False

    def listen(self, backlog):
        self.open()
        self.listening = self.was_opened = True

    def accept(self):
        self.open()
        world = self.world
        if not self.backlog or world.happens(0.02):
            raise BlockingIOError
        if world.happens(0.01):
            self.backlog.pop(0).lose()
            raise ConnectionAbortedError(103, "Software caused connection abort")
        if world.happens(world.storm * 0.02):
            raise OSError(24, "Too many open files")
        link = self.backlog.pop(0)
        link.accepted = True
        return link, ("127.0.0.1", link.number)

    def readiness(self):
        return EVENT_READ if self.backlog else 0

    def close(self):
        super().close()
        self.listening = False
        while self.backlog:
            self.backlog.pop().lose()


class Link(Plug):
    """A connection. The server's end has the methods of a socket, the client's end has verbs."""

    def __init__(self, world, capacity):
        super().__init__(world)
        self.capacity = capacity  # of the buffer between the server and a client that must read
        self.inbound = bytearray()
        self.outbound = bytearray()
        self.accepted = False
        self.client_ended = False  # the client's FIN is behind the inbound bytes
        self.client_closed = False  # nobody reads there: what is sent is answered by a reset
        self.broken = False  # a reset has reached the server
        self.server_ended = False  # our FIN is behind the outbound bytes
        self.lost = False  # a reset has reached the client
        self.hard = False  # SO_LINGER 0: to close is to reset
        self.on_outbound = lambda: None

    # -- the server's end ----------------------------------------------------------------------

    def recv(self, size):
        self.open()
        world = self.world
        if world.noisy and world.happens(0.03):
            raise BlockingIOError
        if self.broken and (world.happens(0.5) or not self.inbound):
            raise ConnectionResetError(104, "Connection reset by peer")
        if self.inbound:
            size = min(size, len(self.inbound))
            if world.happens(0.3):
                size = world.random.randint(1, size)
            data = bytes(self.inbound[:size])
            del self.inbound[:size]
            world.record(self, b"recv", data)
            return data
        if self.client_ended:
            return b""
        raise BlockingIOError

    def send(self, data):
        self.open()
        world = self.world
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        if self.server_ended:
            raise Violation(f"{self!r}: data is sent behind the FIN")
        if self.client_closed:
            world.later(world.random.random() * 0.01, self.break_server_end)
            return len(data)
        room = self.capacity - len(self.outbound)
        if room <= 0 or world.happens(0.03):
            raise BlockingIOError
        size = min(room, len(data))
        if world.happens(0.2):
            size = world.random.randint(1, size)
        taken = bytes(data[:size])
        self.outbound += taken
        world.record(self, b"send", taken)
        self.on_outbound()
        return size

    def sendmsg(self, pieces):
        return self.send(b"".join(pieces))

    def shutdown(self, how):
        self.open()
        if how != socket.SHUT_WR:
            raise Violation(f"{self!r}: shutdown of more than our side")
        if self.broken:
            raise OSError(107, "Transport endpoint is not connected")
        self.server_ended = True
        self.on_outbound()

    def setsockopt(self, level, option, value):
        self.open()
        if self.broken and self.world.happens(0.5):
            raise OSError(22, "Invalid argument")
        if option == socket.SO_LINGER and level == socket.SOL_SOCKET:
            self.hard = True

    def getsockname(self):
        if self.broken and self.world.happens(0.5):
            raise OSError(107, "Transport endpoint is not connected")
        return super().getsockname()

    def close(self):
        if self.closed:
            return
        super().close()
        # RFC 1122 §4.2.2.13: to close with unread input sends a reset
        if self.hard or self.inbound:
            self.lose()
        else:
            self.server_ended = True
            self.on_outbound()

    def readiness(self):
        """Return what a selector would tell of the server's end."""
        if self.broken:
            return EVENT_READ | EVENT_WRITE
        ready = EVENT_READ if self.inbound or self.client_ended else 0
        if self.client_closed or len(self.outbound) < self.capacity:
            ready |= EVENT_WRITE
        return ready

    def is_gone(self):
        """Tell whether a selector would tell of a hang-up."""
        return self.broken or (self.client_ended and self.server_ended)

    def getsockopt(self, level, option):
        self.open()
        if option != socket.SO_ERROR or level != socket.SOL_SOCKET:
            raise Violation(f"{self!r}: unknown option {option!r}")
        return 104 if self.broken else 0

    def break_server_end(self):
        """A reset arrives at the server."""
        self.broken = True

    # -- the client's end ----------------------------------------------------------------------

    def lose(self):
        """A reset arrives at the client; it may overtake what was sent before."""
        if not self.lost:
            self.lost = True
            if self.world.happens(0.5):
                self.outbound.clear()
            self.on_outbound()

    def say(self, data):
        """Send ``data`` to the server."""
        if self.closed:
            self.lose()
        elif not self.broken:
            self.inbound += data

    def end(self):
        """Half-close: no more will be said."""
        self.client_ended = True

    def hang_up(self):
        """Close; with unread input that is a reset, as everywhere."""
        self.client_ended = self.client_closed = True
        if self.outbound and not self.closed:
            self.broken = True

    def reset(self):
        """Close with a reset."""
        self.client_ended = self.client_closed = self.broken = True

    def take(self, size):
        """Read up to ``size`` bytes."""
        data = bytes(self.outbound[:size])
        del self.outbound[:size]
        return data


class World:
    """One simulated worker, its network, its clients; ``play`` lives it from start to end.

    ``storm`` from 0 to 1 says how hard it blows: 0 is a calm world without faults of its own.
    In an ``exact`` world nothing is left to chance, and only waiting takes time.
    """

    def __init__(self, seed, storm, app, options, exact=False):
        self.seed = seed
        self.storm = storm
        self.exact = exact
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.numbers = itertools.count(10)
        self.plugs = []
        self.events = []  # (moment, number, action): what clients do, and when
        self.keys = {}  # of the selector: plug -> SelectorKey
        self.turns = 0
        self.digest = 0
        self.blame = []  # what apps and clients saw that must not be
        self.signals = []
        self.narrate = None
        self.running = []  # calls of the app that have not ended
        self.clients = []
        self.held = []  # when apps held the reactor, and for how long
        # In a noisy world readiness comes late or for nothing; a request may then meet a deadline
        # that it would have met in time, so that no app holds the reactor there.
        self.noisy = storm > 0 or self.happens(0.5)
        self.seen_broken = {}  # links that are reset, and since when it could be known
        self.hears = exact or not self.happens(0.3)  # hang-ups, unasked
        self.before_wait = lambda: None  # the invariants
        self.when_still = lambda: False  # nothing will happen any more; True if now it does
        self.wakeup = Wakeup(self)
        self.gate = Gate(self)
        self.reactor = Reactor(self, self.clock, wakeup_pair=(self.wakeup, Wakeup(self)))
        usual = {"loop": "native", "access_log": False, "slow_step": 0.0}
        # When garbage is looked for is of the whole process: no two worlds would be the same.
        config = Config(app, **{**usual, "gc_freeze": False, "gc_threshold": 0, **options})
        self.server = Server(config, self.reactor, self.wall_clock, [self.gate])
        self.service = self.server.service
        self.service.connections = OrderedSet()
        self.server.stepper.tasks = OrderedSet()
        self.reactor.on_signal = self.server.on_signal
        self.reactor.on_fault = self.on_fault

    def wall_clock(self):
        return self.clock.now + 1.6e9

    def on_fault(self, exc):
        """A bug of ours ends the world."""
        raise exc

    def play(self):
        """Run the server until it has ended; return its exit code."""
        try:
            return self.server.stepper.run(self.server.main())
        finally:
            self.last_keys = list(self.keys)
            self.last_timers = list(self.reactor.timers)
            self.server.close()

    def fade(self):
        """Let the clients read what is on its way when the server has ended."""
        while self.events:
            self.clock.now = max(self.clock.now, self.events[0][0])
            self.act()

    # -- chance, time and the diary ------------------------------------------------------------

    def happens(self, probability):
        """Tell whether something of ``probability`` happens."""
        return probability > 0 and not self.exact and self.random.random() < probability

    def later(self, delay, action):
        """Let ``action`` happen in ``delay`` seconds."""
        heapq.heappush(self.events, (self.clock.now + delay, next(self.numbers), action))

    def record(self, plug, word, data):
        """Add to the digest by which two runs of a seed are compared."""
        self.digest = zlib.crc32(data, zlib.crc32(b"%d" % plug.number + word, self.digest))
        if self.narrate:
            self.narrate(f"{plug!r} {word.decode()} {len(data)} bytes {data[:60]!r}")

    def tell(self, text):
        """Say what happens, when somebody listens."""
        if self.narrate:
            self.narrate(text)

    def signal(self, number):
        """Deliver a signal."""
        self.tell(f"signal {number}")
        self.signals.append((self.clock.now, number))
        self.wakeup.data.append(number)

    def blamed(self, text):
        """Remember a violation seen where an exception would be swallowed."""
        self.blame.append(text)

    def check(self, condition, text):
        """Remember a violation unless ``condition`` holds."""
        if not condition:
            self.blame.append(text)

    def held_around(self, moment):
        """Return for how many seconds apps held the reactor from about ``moment`` on."""
        return sum(seconds for at, seconds in self.held if at >= moment - 2)

    # -- the selector --------------------------------------------------------------------------

    def register(self, plug, events, data=None):
        plug.open()
        if plug in self.keys:
            raise Violation(f"{plug!r} is registered twice")
        if not 0 < events <= 3:
            raise Violation(f"{plug!r} is registered for {events!r}")
        self.keys[plug] = selectors.SelectorKey(plug, plug.number, events, data)

    def modify(self, plug, events, data=None):
        plug.open()
        if plug not in self.keys:
            raise Violation(f"{plug!r} is modified, but was not registered")
        if events == self.keys[plug].events:
            raise Violation(f"{plug!r} is registered for {events!r} already")
        if not events and not self.hears:  # as kqueue and select
            del self.keys[plug]
            raise ValueError(f"Invalid events: {events!r}")
        self.keys[plug] = selectors.SelectorKey(plug, plug.number, events, data)

    def unregister(self, plug):
        if plug not in self.keys:
            raise Violation(f"{plug!r} is unregistered, but was not registered")
        del self.keys[plug]

    def get_map(self):
        return self.keys

    def close(self):
        self.keys.clear()

    def select(self, timeout=None):
        """Let everybody else live until somebody is ready or ``timeout`` seconds have passed."""
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise Violation("this world never comes to an end")
        self.before_wait()
        clock = self.clock
        until = NEVER if timeout is None else clock.now + timeout
        self.act()
        ready = self.find_ready(0.05 if self.noisy else 0)
        if not ready and clock.now < until:
            ready = self.find_ready(0)  # who was missed is not missed for long
        while not ready and clock.now < until:
            moment = min(until, self.events[0][0] if self.events else NEVER)
            if moment < NEVER:
                clock.now = max(clock.now, moment)
            elif not self.when_still():
                waiting = [client for client in self.clients if not client.done]
                raise Violation(f"the server waits, and so do {waiting}, {list(self.keys)}")
            self.act()
            ready = self.find_ready(0)
        if not self.exact:
            clock.now += self.random.random() * 0.0005
        if self.happens(self.storm * 0.002):
            clock.now += self.random.choice((0.5, 3, 20, 200))  # the machine was suspended
            self.tell("time jumps")
        return ready

    def act(self):
        """Let clients do what their time has come for."""
        events = self.events
        while events and events[0][0] <= self.clock.now:
            heapq.heappop(events)[2]()

    def find_ready(self, missed):
        """Return what is ready, each with probability ``missed`` not yet, and in any order."""
        ready = []
        for plug, key in self.keys.items():
            if plug.closed:
                raise Violation(f"{plug!r} was closed while registered")
            mask = plug.readiness() & key.events
            if not key.events:  # it is told of the end only, unasked, and never for nothing
                if plug.is_gone() and not self.happens(missed):
                    ready.append((key, 0))
            elif mask and not self.happens(missed):
                ready.append((key, mask))
            elif self.happens(0.002):
                ready.append((key, key.events))  # spurious
        if len(ready) > 1 and self.happens(0.3):
            self.random.shuffle(ready)
        return ready
