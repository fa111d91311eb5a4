"""eager: wait for the next request awake, while requests come as soon as that.

To fall asleep and to be woken takes longer than a client nearby takes to ask again, in virtual
machines above all. So after many waits in a row that were shorter than ``--busy-poll`` says, the
selector is asked again and again for that long before it sleeps. One look in vain, and this has to
be earned anew: who has little to do sleeps, and who shares a processor is not robbed of much of it.
"""

from __future__ import annotations

import selectors
import time

from .reactor import Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

WORTH = 32  # short waits in a row after which one is looked for


class EagerSelector(selectors.DefaultSelector):
    """A selector that looks for up to ``eagerness`` seconds before it sleeps, if that pays."""

    def __init__(self, eagerness: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.eagerness = eagerness
        self.clock = clock
        self.short_waits = 0  # in a row

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as any selector does."""
        look = super().select
        if timeout is not None and timeout <= 0.0:
            return look(timeout)
        eager = self.eagerness if timeout is None or timeout > self.eagerness else timeout
        until = self.clock() + eager
        if self.short_waits >= WORTH:
            while self.clock() < until:
                events = look(0.0)
                if events:
                    return events
            self.short_waits = 0
            return look(None if timeout is None else timeout - eager)  # timers do not wait longer
        events = look(timeout)
        self.short_waits = self.short_waits + 1 if self.clock() < until else 0
        return events

    def calm(self) -> None:
        """Sleep at once: it is a thread that is waited for, which needs the interpreter."""
        self.short_waits = 0


def make_reactor(busy_poll: int) -> Reactor:
    """Make a reactor that looks for ``busy_poll`` microseconds before it sleeps, if that pays."""
    if not busy_poll:
        return Reactor()
    selector = EagerSelector(busy_poll / 1e6)
    reactor = Reactor(selector)
    reactor.on_woken = selector.calm
    return reactor
