"""reactor: one thread that waits for many things at once, and calls whoever can go on.

A handler is a callable that is given a readiness mask; it does what can be done now and returns,
it never waits. Everything else that is called (timers, the ready queue, flushes) keeps the same
rule, so that one turn, ``tick``, is short and everybody gets one. The reactor owns the selector,
the monotonic clock and the wakeup pair, the byte through which signals and other threads end a
wait early. An idle reactor makes no system call between its timers.
"""

from __future__ import annotations

import heapq
import itertools
import select
import selectors
import socket
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    from .trace import Tells

    Handler = Callable[[int], object]

    class Flushable(Protocol):
        """What may wait in ``unflushed``: called once when the turn ends or is long."""

        def flush(self) -> None: ...


EVENT_READ = selectors.EVENT_READ
EVENT_WRITE = selectors.EVENT_WRITE
NEVER = float("inf")
MAX_PATIENCE = 86400.0  # select() refuses what does not fit a C int of milliseconds
PIPE_BUF = getattr(select, "PIPE_BUF", 512)  # bytes that a writable pipe takes without waiting
UNHEARD_INTERVAL = 1.0  # seconds, where the selector does not tell of hang-ups unasked
LONG_TURN = 0.005  # seconds: what was written leaves before the next handler then
FEW = 2  # with so many things to do in a turn, answers leave at once: see response_complete
LOOK = 4  # a mask: it may be gone, look
MAX_FAULTS = 20  # in a row
MIN_CANCELLED = 64  # below it, cancelled timers are left to come up by themselves


class Timer:
    """An action at a moment of the reactor's clock; ``cancel`` forgets it."""

    __slots__ = ("action", "at", "reactor")

    def __init__(self, reactor: Reactor, at: float, action: Callable[[], object]) -> None:
        self.reactor = reactor
        self.at = at
        self.action: Callable[[], object] | None = action

    def __repr__(self) -> str:
        return f"<Timer at {self.at:.3f} {self.action!r}>"

    def cancel(self) -> None:
        """Never run the action; safe at any time, also twice."""
        if self.action is not None:
            self.action = None
            self.reactor.forget_timer()


class Deadline:
    """A moment that moves often and is reached seldom; ``action`` is called when it is.

    To move it is one assignment: the heap holds an entry that may be too early, and only when
    that comes up is the moment looked at. A kept connection so costs one heap operation every
    few seconds instead of two a request.
    """

    __slots__ = ("action", "at", "looked_at", "reactor", "timer")

    def __init__(self, reactor: Reactor, action: Callable[[], object]) -> None:
        self.reactor = reactor
        self.action: Callable[[], object] | None = action
        self.at = NEVER
        self.timer: Timer | None = None
        self.looked_at = NEVER  # when the timer comes up

    def set(self, at: float) -> None:
        """Move the moment to ``at`` on the reactor's clock; NEVER disarms."""
        self.at = at
        if at < self.looked_at:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = self.reactor.call_at(at, self.look)
            self.looked_at = at

    def look(self) -> None:
        """Run the action if the moment has come, else come back when it has."""
        self.timer = None
        self.looked_at = NEVER
        if self.at <= self.reactor.now:
            self.at = NEVER
            if self.action is not None:
                self.action()
        else:
            self.set(self.at)

    def close(self) -> None:
        """Disarm for good and let go of the action."""
        self.at = NEVER
        self.action = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Reactor:
    """Wait for readiness and time, call handlers, and flush; one ``tick`` is one turn.

    ``selector``, ``clock`` and the wakeup pair are parts like any other, so that a test can
    bring its own. ``now`` is the clock's reading at the start of the turn, in seconds.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector | None = None,
        clock: Callable[[], float] = time.monotonic,
        trace: Tells | None = None,
        wakeup_pair: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        self.selector = selectors.DefaultSelector() if selector is None else selector
        self.clock = clock
        self.now = clock()
        self.ready: deque[Callable[[], object]] = deque()
        self.unflushed: list[Flushable] = []
        self.few = False  # there is little to do in this turn
        self.timers: list[tuple[float, int, Timer]] = []  # tuples are compared in C
        self.timer_numbers = itertools.count()
        self.cancelled_timers = 0
        self.unheard: dict[int | socket.socket, Handler] = {}  # whose end is told by no selector
        self.looks = False  # …so that a timer runs
        self.running = False
        self.on_turn: Callable[[], object] | None = None  # told when a wait has ended
        self.on_signal: Callable[[int], object] = int  # int(n) is n: nothing
        self.on_woken: Callable[[], object] = int  # by a thread or a signal
        self.on_fault: Callable[[Exception], object] | None = None  # a bug of ours, to be told
        self.on_return: Callable[[Any], object] = id  # to us, of the app's; id() is nothing
        self.trace: Tells | None = trace
        self.threads: Any = None  # the pool of run_in_thread, once somebody needs it
        self.wakeup_receiver, self.wakeup_sender = wakeup_pair or socket.socketpair()
        self.woken = False  # a byte is on its way already
        self.wakeup_receiver.setblocking(False)
        self.wakeup_sender.setblocking(False)
        self.selector.register(self.wakeup_receiver, EVENT_READ, self.on_wakeup)

    def __repr__(self) -> str:
        return (
            f"<Reactor {len(self.selector.get_map() or ())} registered, {len(self.timers)} timers, "
            f"{len(self.ready)} ready>"
        )

    # -- readiness: who is called when a descriptor is ready -----------------------------------

    def register(self, fileobj: int | socket.socket, interest: int, handler: Handler) -> None:
        """Call ``handler(mask)`` whenever ``fileobj`` is ready for what interest asks."""
        self.selector.register(fileobj, interest, handler)

    def register_own(self, sock: socket.socket, interest: int, handler: Handler) -> None:
        """Register a socket that nobody else can have: who is there has closed it unsaid.

        An app's library that closes a descriptor without a remove_reader leaves its number
        registered, and the kernel gives the number to the next client.
        """
        try:
            self.selector.register(sock, interest, handler)
        except KeyError:
            self.selector.unregister(sock)
            self.selector.register(sock, interest, handler)

    def handler(self, fileobj: int | socket.socket) -> Handler | None:
        """Tell who is called for ``fileobj``; None when nobody is."""
        try:
            handler: Handler = self.selector.get_key(fileobj).data
        except (KeyError, ValueError):  # ValueError: closed
            return None
        return handler

    def modify(self, fileobj: int | socket.socket, interest: int, handler: Handler) -> None:
        """Change what is waited for; 0 is only that the other side is gone.

        epoll and poll tell a hang-up unasked: ``handler(0)`` is called. kqueue and select want to
        be asked for something: there ``handler(LOOK)`` is called once a second.
        """
        if fileobj in self.unheard:
            if not interest:
                self.unheard[fileobj] = handler
                return
            del self.unheard[fileobj]
            self.selector.register(fileobj, interest, handler)
            return
        try:
            self.selector.modify(fileobj, interest, handler)
        except ValueError:  # and it is not registered any more
            if interest:
                raise
            self.unheard[fileobj] = handler
            if not self.looks:
                self.looks = True
                self.call_later(UNHEARD_INTERVAL, self.look_after)

    def look_after(self) -> None:
        """Have those looked at whose end the selector does not tell."""
        handlers = list(self.unheard.values())
        self.looks = bool(handlers)
        if handlers:
            self.call_later(UNHEARD_INTERVAL, self.look_after)
        for handler in handlers:
            handler(LOOK)

    def unregister(self, fileobj: int | socket.socket) -> None:
        """Wait no longer; to be called before the descriptor is closed."""
        if self.unheard.pop(fileobj, None) is None:
            self.selector.unregister(fileobj)

    # -- time and turns ------------------------------------------------------------------------

    def call_soon(self, action: Callable[[], object]) -> None:
        """Run ``action`` in the next round of the ready queue."""
        self.ready.append(action)

    def call_at(self, at: float, action: Callable[[], object]) -> Timer:
        """Run ``action`` once the clock has reached ``at``."""
        timer = Timer(self, at, action)
        heapq.heappush(self.timers, (at, next(self.timer_numbers), timer))
        return timer

    def call_later(self, delay: float, action: Callable[[], object]) -> Timer:
        """Run ``action`` after ``delay`` seconds."""
        return self.call_at(self.clock() + delay, action)

    def call_from_thread(self, action: Callable[[], object]) -> None:
        """Run ``action`` on the reactor's thread: the only method other threads may call."""
        self.ready.append(action)  # deque.append is atomic
        self.wakeup()

    def wakeup(self) -> None:
        """End the wait early; from any thread or signal handler.

        One byte is enough for all who call before it is read: each send of a worker thread lets
        go of the GIL and gets it back (with 8 threads answering, 3 futex calls a request fewer).
        """
        if self.woken:
            return
        self.woken = True
        try:
            self.wakeup_sender.send(b"\0")
        except BlockingIOError:
            pass  # the pair is full: the reactor will wake up anyway
        except OSError:
            pass  # closed: nobody waits any more

    def on_wakeup(self, _ready: int) -> None:
        """Drain the pair; bytes other than 0 are signal numbers (signal.set_wakeup_fd)."""
        try:
            data = self.wakeup_receiver.recv(4096)
        except BlockingIOError:
            return
        finally:
            self.woken = False  # behind the recv: who comes before is in the queue of this turn
        self.on_woken()
        for number in data:
            if number:
                self.on_signal(number)

    def forget_timer(self) -> None:
        """Count a cancelled timer; when most are cancelled, sweep them out."""
        self.cancelled_timers += 1
        if self.cancelled_timers > MIN_CANCELLED and self.cancelled_timers * 2 > len(self.timers):
            self.timers = [entry for entry in self.timers if entry[2].action is not None]
            heapq.heapify(self.timers)
            self.cancelled_timers = 0

    def patience(self) -> float | None:
        """Tell how long this turn may wait, in seconds; None is until something happens."""
        if self.ready or self.unflushed:
            return 0.0
        if not self.timers:
            return None
        left = self.timers[0][0] - self.clock()
        if left > MAX_PATIENCE:
            return MAX_PATIENCE
        return left if left > 0.0 else 0.0  # min and max cost five times as much

    def tick(self, patience: float | None = None) -> None:
        """One turn: wait, handle what is ready, fire timers, step tasks, flush.

        ``patience`` bounds the wait, in seconds: 0 looks and goes on, for a host program that
        has a loop of its own.
        """
        limit = self.patience()
        if patience is not None and (limit is None or patience < limit):
            limit = patience
        events = self.selector.select(limit)
        self.now = self.clock()
        if self.on_turn is not None:
            self.on_turn()
        self.few = len(events) + len(self.ready) <= FEW
        unflushed, clock, long = self.unflushed, self.clock, self.now + LONG_TURN
        for key, ready in events:
            if unflushed and clock() > long:
                self.flush()
            key.data(ready)
        if self.timers and self.timers[0][0] <= self.now:
            self.fire_timers()
        ready_queue = self.ready
        if ready_queue:
            for _ in range(len(ready_queue)):  # only those ready now: everybody gets a turn
                if unflushed and clock() > long:
                    self.flush()
                ready_queue.popleft()()
        self.flush()

    def flush(self) -> None:
        """Send what was gathered: nobody's answer waits for the steps of many others."""
        while self.unflushed:
            self.unflushed.pop().flush()

    def fire_timers(self) -> None:
        """Run the actions whose moment has come, earliest first."""
        now = self.now
        while self.timers and self.timers[0][0] <= now:
            timer = heapq.heappop(self.timers)[2]
            action, timer.action = timer.action, None
            if action is None:
                self.cancelled_timers -= 1
            else:
                action()

    def run(self) -> None:
        """Turn until ``stop``.

        What a handler raises is a bug. It has ended its turn, but nothing is lost: what was
        ready then is still ready, and the queues are as they were. But when turn after turn ends so
        (an app has closed the selector's descriptor) that is raised: nothing goes on any more.
        """
        self.running = True
        faults = 0
        while self.running:
            try:
                self.tick()
                faults = 0
            except Exception as exc:
                faults += 1
                if self.on_fault is None or faults > MAX_FAULTS:
                    raise
                self.on_fault(exc)
            except BaseException as exc:
                self.on_return(exc)
                raise

    def stop(self) -> None:
        """End ``run`` after this turn."""
        self.running = False

    def close(self) -> None:
        """Release the selector and the wakeup pair; what is still registered is forgotten."""
        if self.threads is not None:
            self.threads.shutdown(wait=False)
        self.selector.close()
        self.wakeup_receiver.close()
        self.wakeup_sender.close()
        self.ready.clear()
        self.timers.clear()
        self.unflushed.clear()


def can_write(fd: int, patience: float = 0.0) -> bool:
    """Tell whether one write to ``fd`` goes on at once, or fails at once; wait so many seconds."""
    try:
        return bool(select.select([], [fd], [], patience)[1])
    except (OSError, ValueError):
        return True  # Windows knows this only for sockets; a closed one fails by itself
