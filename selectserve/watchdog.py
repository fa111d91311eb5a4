"""watchdog: tells who holds the reactor, while he holds it.

A step that does not return makes everybody wait. A thread of its own looks, four times per
``--slow-step``, whether the turn is still the same one, and names the request and the app's line
that it finds running. A step pays nothing for that: ``Reactor.now`` changes with every turn, and
the stack of a thread can be read by another. While the reactor has nothing to do the watchdog
sleeps too, until ``on_turn`` wakes it. Where there are no threads, long turns are told afterwards.
"""

from __future__ import annotations

import os
import sys

from .logs import error_logger, printable
from .reactor import Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable

LOOKS = 4  # per slow step; more would tell it sooner, and cost more
IDLE_LOOKS = 2  # in a row that found nothing: then the thread sleeps, too
LIBRARY = os.path.dirname(os.__file__)
TICK = Reactor.tick.__code__


class Watchdog:
    """Watch ``reactor``, whose thread calls ``start``; ``limit`` are the seconds of a slow step."""

    def __init__(self, reactor: Reactor, limit: float) -> None:
        self.reactor = reactor
        self.limit = limit
        self.thread_id = 0  # of the reactor
        self.turn = 0.0  # the one seen last…
        self.step: FrameType | None = None  # …and what was running in it
        self.told = False
        self.looked_at = 0.0
        self.idle_looks = 0
        self.running = False
        self.on_held: Callable[[float], object] | None = None  # on our thread: seconds so far
        self.wakeup: Any = None  # an Event: there is a turn to watch, or an end

    def start(self) -> None:
        """Begin to watch; called on the reactor's thread."""
        try:
            import threading

            sys._current_frames()
            self.wakeup = threading.Event()
            self.thread_id = threading.get_ident()
            self.running = True
            threading.Thread(target=self.watch, name="selectserve-watchdog", daemon=True).start()
        except (ImportError, RuntimeError, AttributeError):  # no threads here, or no more of them
            self.running = False
            self.reactor.on_turn = self.measure_turn

    def stop(self) -> None:
        """Watch no longer."""
        self.running = False
        self.reactor.on_turn = None
        if self.wakeup is not None:
            self.wakeup.set()

    def watch(self) -> None:
        """Look again and again: the life of the thread."""
        while self.running:
            if self.idle_looks >= IDLE_LOOKS:
                self.sleep()
            self.wakeup.wait(self.limit / LOOKS)
            if self.running:
                self.look()

    def sleep(self) -> None:
        """Rest as long as the reactor does."""
        self.wakeup.clear()
        self.reactor.on_turn = self.on_turn
        if self.running and self.reactor.now == self.turn:  # else a turn has begun meanwhile
            self.wakeup.wait()
        self.idle_looks = 0
        self.looked_at = self.reactor.clock()

    def on_turn(self) -> None:
        """The reactor has something to do again: wake the thread, once."""
        self.reactor.on_turn = None
        self.wakeup.set()

    def look(self) -> None:
        """See what the reactor does now; tell it if that has lasted too long."""
        self.wakeup.clear()
        reactor = self.reactor
        now = reactor.clock()
        turn = reactor.now
        held = now - turn
        # A look that comes late was held up itself, by whoever had the interpreter's lock.
        late = now - self.looked_at > self.limit
        self.looked_at = now
        frames = self.stack() if held >= self.limit / LOOKS else []
        same = turn == self.turn and bool(frames) and frames[0] is self.step
        self.told = self.told and same
        self.idle_looks = self.idle_looks + 1 if turn == self.turn and not frames else 0
        if frames and held >= self.limit and (same or late) and not self.told:
            self.told = True
            error_logger.warning(
                "a step has held the reactor for %.2f s so far: %s", held, describe_stack(frames)
            )
        if frames and held >= self.limit and self.on_held is not None:
            self.on_held(held)
        self.remember(turn, frames)

    def remember(self, turn: float, frames: list[FrameType]) -> None:
        """Keep the step, to know it again; let the reactor's thread drop what is not kept.

        Who drops the last reference to a frame runs the finalizers of what lived in it, and
        those of an app's objects belong on the app's thread.
        """
        step = frames[0] if frames else None
        if self.step is not None:
            frames.append(self.step)
        self.turn, self.step = turn, step
        if frames:
            self.reactor.call_from_thread(frames.clear)

    def stack(self) -> list[FrameType]:
        """Return the frames of the step that is running, outermost first; none while waiting."""
        frames: list[FrameType] = []
        frame = sys._current_frames().get(self.thread_id)
        while frame is not None and frame.f_code is not TICK:
            frames.append(frame)
            frame = frame.f_back
        if frame is None or not frames or frames[-1].f_code.co_name == "select":
            return []
        return frames[::-1]

    def measure_turn(self) -> None:
        """Without threads: measure this turn behind all that is ready now."""
        self.reactor.call_soon(self.tell_turn)

    def tell_turn(self) -> None:
        """Tell a turn that has lasted too long, when it is over."""
        held = self.reactor.clock() - self.reactor.now
        if held >= self.limit:
            error_logger.warning("a turn has held the reactor for %.2f s", held)


def describe_stack(frames: list[FrameType]) -> str:
    """Name the request and the app's line in ``frames``, and where it is inside of a library."""
    request = "a task of the app's"
    for frame in frames:
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict) and "path" in scope:
            request = printable(f"{scope.get('method', 'WebSocket')} {scope['path']}")
            break
    own = [frame for frame in frames if is_of_the_app(frame)]
    text = f"{request}, at {describe_line(own[-1] if own else frames[-1])}"
    if own and own[-1] is not frames[-1]:
        text += f" (inside {frames[-1].f_code.co_filename}:{line_of(frames[-1])})"
    return text


def is_of_the_app(frame: FrameType) -> bool:
    """Tell the user's code from ours, Python's and that of installed packages."""
    name = frame.f_code.co_filename
    foreign = name.startswith((LIBRARY, "<")) or "site-packages" in name or "dist-packages" in name
    return not foreign and not frame.f_globals.get("__name__", "").startswith("selectserve")


def line_of(frame: FrameType) -> int:
    """Return the number of the line; between two lines Python has none (seen on 3.11)."""
    return frame.f_lineno or frame.f_code.co_firstlineno


def describe_line(frame: FrameType) -> str:
    """Return file, line number, function and text of the line that ``frame`` is at."""
    import linecache

    code, number = frame.f_code, line_of(frame)
    line = linecache.getline(code.co_filename, number).strip()
    return f"{code.co_filename}:{number} in {code.co_name}: {line}"
