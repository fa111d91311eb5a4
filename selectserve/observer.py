"""observer: times a reactor's turns, stops it and lets it go step by step, from outside.

An Observer takes the place of parts of a reactor (tick, selector, queues, clock) and passes every
call on; the reactor's own code knows nothing of it, and where nobody observes nothing is paid.
While the server stands still its clock does too, so that no deadline passes in a pause. What must
go on meanwhile, the inspector's page, lives on ``own``, a small reactor in the same thread: the big
one sees it as one descriptor more, turns it once a turn, and turns nothing else while it waits.

    run -> slow (a pause behind each turn) -> paused (a turn for each step) -> run
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from functools import partial

from .narrator import InTurn
from .reactor import EVENT_READ, Deadline, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal

    from .asgi import Receive, Scope, Send
    from .service import Service, StepApp
    from .trace import Tells

    Pace = Literal["run", "slow", "paused"]

PHASES = ("wait", "handlers", "timers", "tasks", "flush")
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW_STEP = 0.1  # seconds that a step may hold the reactor before it is noted
MAX_TURNS = 90  # the last ones that are kept
MAX_MOMENTS = 500
MAX_SLOW = 20
POLL = 0.05  # seconds between two looks at `own`, where one selector cannot wait for another


class Turn:
    """What one turn did: seconds and how many, by phase."""

    __slots__ = ("counts", "number", "seconds")

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = dict.fromkeys(PHASES, 0)

    def add(self, phase: str, seconds: float) -> None:
        """One more in ``phase``."""
        self.seconds[phase] += seconds
        self.counts[phase] += 1

    @property
    def worked(self) -> bool:
        """True when it was more than a look."""
        return any(self.counts[phase] for phase in PHASES[1:])


class StoppableClock:
    """A monotonic clock that can stand still; what it has missed it does not catch up."""

    def __init__(self, real: Callable[[], float]) -> None:
        self.real = real
        self.missed = 0.0
        self.stopped_at: float | None = None

    def __call__(self) -> float:
        return (self.real() if self.stopped_at is None else self.stopped_at) - self.missed

    def stop(self) -> None:
        """Stand still."""
        if self.stopped_at is None:
            self.stopped_at = self.real()

    def go(self) -> None:
        """Go on."""
        if self.stopped_at is not None:
            self.missed += self.real() - self.stopped_at
            self.stopped_at = None


class Observer:
    """Stand between the parts of ``reactor``; to be made before anybody else knows its parts.

    ``pace`` is "run", "slow" (``delay`` seconds behind each turn that did something) or "paused",
    in which ``steps`` says how many turns it may still go.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.own = Reactor()
        self.real = reactor.clock
        self.clock = StoppableClock(reactor.clock)
        self.pace: Pace = "run"
        self.delay = 0.5
        self.steps = 0
        self.turn = Turn(0)
        self.turns: deque[Turn] = deque([self.turn], MAX_TURNS)
        self.turn_count = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)  # in all
        self.slow: deque[tuple[float, float, str]] = deque(maxlen=MAX_SLOW)
        self.slow_count = 0
        self.latencies = [0] * (len(LATENCIES) + 1)
        self.latency_sum = 0.0
        self.answers = {"2": 0, "3": 0, "4": 0, "5": 0, "none": 0}
        self.flush_began = 0.0
        self.inside_tick = reactor.tick
        self.inside_patience = reactor.patience
        self.inside_fire_timers = reactor.fire_timers
        self.selector = ObservedSelector(reactor.selector, self)
        queue, flushes = ObservedQueue(reactor.ready), ObservedFlushes(reactor.unflushed)
        queue.observer = flushes.observer = self
        vars(reactor).update(
            selector=self.selector,
            clock=self.clock,
            ready=queue,
            unflushed=flushes,
            tick=self.tick,
            patience=self.patience,
            fire_timers=self.fire_timers,
        )
        # what ends a wait of the server's ends a pause's, and the other way round
        self.own.register(reactor.wakeup_receiver, EVENT_READ, self.on_wakeup)
        self.nested = hasattr(self.own.selector, "fileno")  # epoll and kqueue can be waited for
        if self.nested:
            wanted: Any = self.own.selector
            reactor.register(wanted, EVENT_READ, self.on_own_ready)

    def close(self) -> None:
        """Release the small reactor."""
        self.own.close()

    # -- the turn, seen from outside -----------------------------------------------------------

    def tick(self, patience: float | None = None) -> None:
        """One turn of the server, as soon as it may, and one of our own."""
        if self.pace != "run":
            patience = self.hold(patience)
        turn = self.turn = Turn(self.turn_count + 1)
        self.flush_began = 0.0
        try:
            self.inside_tick(patience)
        finally:
            self.selector.end_handler()
            for phase in PHASES:
                self.seconds[phase] += turn.seconds[phase]
            if turn.worked:
                self.turn_count += 1
                self.turns.append(turn)
            self.own.tick(0.0)

    def hold(self, patience: float | None) -> float | None:
        """Stand still until the next turn is due, and serve our own meanwhile.

        Returns how long that turn may wait: a step looks, and does not wait.
        """
        if self.pace == "slow" and not self.turn.worked:
            return patience
        until = self.real() + self.delay
        self.clock.stop()
        while not self.steps:
            left = until - self.real() if self.pace == "slow" else None
            if self.pace == "run" or (left is not None and left <= 0):
                break
            self.own.tick(left)
        self.clock.go()
        if self.pace != "paused":
            self.steps = 0
            return patience
        self.steps -= 1
        return 0.0

    def patience(self) -> float | None:
        """Tell how long this turn may wait: our own timers count, too."""
        limits = [self.inside_patience(), self.own.patience(), None if self.nested else POLL]
        return min((limit for limit in limits if limit is not None), default=None)

    def on_own_ready(self, _ready: int) -> None:
        """Our own has something to do: it does it at the end of this turn."""

    def on_wakeup(self, ready: int) -> None:
        """A signal ends the pause: who is told to stop has to turn for that."""
        tell = self.reactor.on_signal

        def on_signal(number: int) -> None:
            self.pace = "run"
            tell(number)

        self.reactor.on_signal = on_signal
        try:
            self.reactor.on_wakeup(ready)
        finally:
            if self.reactor.on_signal is on_signal:
                self.reactor.on_signal = tell

    def fire_timers(self) -> None:
        """Fire timers, and time it."""
        self.selector.end_handler()
        began = self.real()
        self.inside_fire_timers()
        self.end_step("timers", began, None)

    def run_action(self, action: Callable[[], object]) -> None:
        """Run what was in the ready queue, and time it."""
        began = self.real()
        try:
            action()
        finally:
            self.end_step("tasks", began, action)

    def end_step(self, phase: str, began: float, action: Any) -> None:
        """Take a step down, twice if it was slow."""
        seconds = self.real() - began
        self.turn.add(phase, seconds)
        if seconds >= SLOW_STEP:
            self.slow_count += 1
            self.slow.append((began, seconds, f"{phase}: {name_action(action)}"))

    # -- what the apps did ---------------------------------------------------------------------

    def observe_app(self, service: Service) -> None:
        """Measure each request of ``service`` from the call of the app to its end."""
        service.app = self.measure(service.app)

    def measure(self, app: StepApp) -> StepApp:
        """Return ``app``, measured."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            began = self.clock()
            try:
                await app(scope, receive, send)
            finally:
                if scope["type"] == "http":
                    self.count(self.clock() - began, receive)

        return measured

    def count(self, seconds: float, receive: Any) -> None:
        """Put a request into the books."""
        self.latencies[bisect_left(LATENCIES, seconds)] += 1
        self.latency_sum += seconds
        status = str(int(getattr(getattr(receive, "__self__", None), "status", 0) or 0))[0]
        self.answers[status if status in self.answers else "none"] += 1

    # -- what lies ahead -----------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """Say who would have a turn now: of a server that stands still."""
        names = []
        for key, _ready in self.selector.inside.select(0):
            subject = getattr(key.data, "__self__", None)
            if subject is not self and subject is not self.reactor:
                names.append(f"ready: {name_action(key.data)}")
        now = self.clock()
        for at, _, timer in self.reactor.timers:
            if at <= now and timer.action is not None:
                names.append(f"timer: {name_action(timer.action)}")
        return names + [f"task: {name_action(action)}" for action in self.reactor.ready]

    def timers_ahead(self, most: int) -> list[tuple[float, str]]:
        """Return the next timers: in how many seconds, and whose."""
        now = self.clock()
        found = []
        for at, _, timer in sorted(self.reactor.timers)[: most * 4]:
            if timer.action is not None:
                deadline = getattr(timer.action, "__self__", None)
                if isinstance(deadline, Deadline):  # it may have moved on since
                    at = max(at, deadline.at)
                    if deadline.action is None or at == float("inf"):
                        continue
                    found.append((at - now, name_action(deadline.action)))
                else:
                    found.append((at - now, name_action(timer.action)))
        return sorted(found)[:most]


class ObservedSelector:
    """A selector that times the wait, and each handler from its turn to the next one's."""

    def __init__(self, inside: Any, observer: Observer) -> None:
        self.inside = inside
        self.observer = observer
        self.handler: Any = None  # the one that runs
        self.began = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def select(self, timeout: float | None = None) -> InTurn:
        """Wait, and time it."""
        real = self.observer.real
        began = real()
        events = self.inside.select(timeout)
        self.observer.turn.add("wait", real() - began)
        return InTurn(events, self.next_handler)

    def next_handler(self, event: tuple[Any, int]) -> tuple[Any, int]:
        """End the handler before this one, and begin."""
        self.end_handler()
        if getattr(event[0].data, "__self__", None) is not self.observer:
            self.handler = event[0].data
            self.began = self.observer.real()
        return event

    def end_handler(self) -> None:
        """The handler has returned, or all is flushed."""
        observer = self.observer
        if observer.flush_began:
            observer.turn.seconds["flush"] += observer.real() - observer.flush_began
            observer.flush_began = 0.0
        handler, self.handler = self.handler, None
        if handler is not None:
            observer.end_step("handlers", self.began, handler)


class ObservedQueue(deque["Callable[[], object]"]):
    """The ready queue, whose actions are timed."""

    observer: Observer

    def popleft(self) -> Callable[[], object]:
        """Return the next action, in a measure."""
        self.observer.selector.end_handler()
        return partial(self.observer.run_action, super().popleft())


class ObservedFlushes(list["Any"]):
    """What is to be flushed; the first one begins a phase of the turn."""

    observer: Observer

    def pop(self, index: Any = -1) -> Any:
        """Return the next to be flushed."""
        observer = self.observer
        if not observer.flush_began:
            observer.selector.end_handler()
            observer.flush_began = observer.real()
        observer.turn.counts["flush"] += 1
        return super().pop(index)


class Recorder:
    """Keep the last moments for the page, while somebody looks; and pass all on to a tracer."""

    def __init__(self, clock: Callable[[], float], tracer: Tells | None) -> None:
        self.clock = clock
        self.tracer = tracer
        self.start = clock()
        self.watchers = 0
        self.count = 0
        self.moments: deque[tuple[int, float, int, str, str]] = deque(maxlen=MAX_MOMENTS)

    def __bool__(self) -> bool:
        return self.watchers > 0 or self.tracer is not None

    def __call__(self, moment: str, subject: object, *details: object) -> None:
        if self.tracer is not None:
            self.tracer(moment, subject, *details)
        self.count += 1
        number = getattr(subject, "number", 0)
        text = " ".join(map(str, details))[:160]
        self.moments.append((self.count, self.clock() - self.start, number, moment, text))


def name_action(action: Any) -> str:
    """Name a handler, an action or a flush for people."""
    if action is None:
        return "the timers that were due"
    action = getattr(action, "func", action)
    subject = getattr(action, "__self__", None)
    name = getattr(action, "__name__", type(action).__name__)
    if subject is None:
        return str(getattr(action, "__qualname__", repr(action))).replace(".<locals>", "")
    if isinstance(subject, Deadline) and subject.action is not None:
        return name_action(subject.action)
    who = repr(subject).strip("<>")[:120]
    return who if name == "on_deadline" else f"{name} of {who}"
