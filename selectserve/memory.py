"""memory: one bound for all buffers together (``--limit-memory``, off by default).

Each buffer of a connection has a bound of its own, but ten thousand connections have ten thousand.
Above the limit nothing is read any more; a quarter above it nobody is accepted, and another
quarter above it new requests are answered with 503: what is here already is brought to its end,
and its deadlines go on, so that every byte held has somebody who lets go of it.

Counting would cost something on every read and write. So what *may* have been added is summed up,
generously, and the buffers are looked at when that is an eighth of the limit, or after a while.
"""

from __future__ import annotations

from .logs import error_logger
from .reactor import Reactor, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Callable, Protocol

    from .transport import Transport

    class Holder(Protocol):
        """A connection, as far as it holds memory."""

        transport: Transport

        def held_bytes(self) -> int: ...

    class Holders(Protocol):
        """Who knows all connections."""

        @property
        def connections(self) -> Collection[Holder]: ...


CALM_INTERVAL = 1.0  # seconds between two looks, while there are connections…
BUSY_INTERVAL = 0.1  # …and while too much is held
MEASURES = ("read again", "read no more", "accept nobody", "answer 503")


class MemoryLimit:
    """Keep the buffers of ``books.connections`` near ``limit`` bytes at most.

    ``level`` is the number of measures taken, 0 to 3; ``on_level`` is called when it changes.
    """

    def __init__(
        self, reactor: Reactor, limit: int, books: Holders, on_level: Callable[[], object]
    ) -> None:
        self.reactor = reactor
        self.limit = limit
        self.books = books
        self.on_level = on_level
        self.level = 0
        self.added = 0  # bytes that may have come since the last look
        self.timer: Timer | None = None

    def note(self, size: int) -> None:
        """Up to ``size`` bytes are about to be held that were not there before."""
        self.added += size
        if self.added > self.limit >> 3:
            self.look()
        elif self.timer is None:
            self.timer = self.reactor.call_later(CALM_INTERVAL, self.look)

    def look(self) -> None:
        """Count what is held, and do what that calls for."""
        self.added = 0
        connections = self.books.connections
        held = sum(connection.held_bytes() for connection in connections)
        quarter = self.limit / 4
        # a level is left a quarter below where it was entered
        level = max(self.level_of(held), min(self.level, self.level_of(held + quarter)))
        if level != self.level:
            error_logger.warning(
                "buffers hold %.1f MiB, of %.1f allowed: %s",
                held / 1048576,
                self.limit / 1048576,
                MEASURES[level],
            )
            self.level = level
            self.on_level()
        for connection in connections:
            connection.transport.hold_reading(level > 0)
        self.stop()
        if connections:
            interval = BUSY_INTERVAL if level else CALM_INTERVAL
            self.timer = self.reactor.call_later(interval, self.look)

    def level_of(self, held: float) -> int:
        """Return how many measures ``held`` bytes call for."""
        return 0 if held < self.limit else min(3, 1 + int((held - self.limit) * 4 // self.limit))

    def stop(self) -> None:
        """Look no more until something is noted."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
