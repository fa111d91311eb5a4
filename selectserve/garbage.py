"""garbage: have Python look for garbage in less, and less often while there is none.

CPython's collector looks at young objects after every few hundred that are made, and now and then
at all there are: the modules, routes and models of a framework, too, that live as long as the
process. So what is there when serving begins is frozen, no collection looks at it any more
(``gc.freeze``; nor does who asks ``gc.get_objects``): where requests run on threads that saves a
tenth of the time.

Many requests at once are many young objects, which are looked at and are no garbage. So after a
collection in vain the next comes after more objects, but not much later: see MAX_AGE. What only
the collector frees, memory and descriptors, is held no longer for that: as soon as it finds some
it works as Python has it. A server in somebody else's program leaves all this to its host, unless
told otherwise.
"""

from __future__ import annotations

import gc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .reactor import Reactor

USUAL_THRESHOLD: tuple[int, ...] = gc.get_threshold() if hasattr(gc, "get_threshold") else ()
MAX_AGE = 0.01  # seconds from a collection in vain until Python's own threshold holds again
FEW_IN = 100  # one object in so many looked at is nearly no garbage


class Collector:
    """Python's garbage collector, ``calm`` while we serve; ``restore`` may be called always."""

    def __init__(self, reactor: Reactor, freeze: bool, threshold: int) -> None:
        self.reactor = reactor
        self.freeze = freeze
        self.threshold = min(threshold, 2**31 - 1)  # a C int; 0: Python's own
        self.calmed = False
        self.raised = False
        self.fruitful = [False, False, False]  # the last collection of each generation

    def calm(self) -> None:
        """Freeze what is there, and begin to watch the collections, as far as is wanted.

        An app that has turned the collector off, or tuned it, knows better; also a program that
        did so before it imported us: CPython begins with 700, since 3.13 with 2000.
        """
        if not ((self.freeze or self.threshold) and USUAL_THRESHOLD and gc.isenabled()):
            return
        if gc.get_threshold() == USUAL_THRESHOLD and USUAL_THRESHOLD[0] in (700, 2000):
            self.calmed = True
            if self.freeze:
                gc.collect()  # else what start-up has left would stay for ever
                gc.freeze()
            if self.threshold > USUAL_THRESHOLD[0]:
                gc.callbacks.append(self.on_collection)

    def on_collection(self, phase: str, info: dict[str, Any]) -> None:
        """Look how much was found; called in any thread, at any moment."""
        if phase == "stop":
            generation = info["generation"]
            looked_at = USUAL_THRESHOLD[0] * 10**generation
            self.fruitful[generation] = info["collected"] * FEW_IN > looked_at
            if any(self.fruitful):
                self.lower()
            elif gc.get_threshold() == USUAL_THRESHOLD:
                gc.set_threshold(self.threshold, *USUAL_THRESHOLD[1:])
                self.raised = True  # now: `lower` of another thread may have come in between
                self.reactor.call_from_thread(self.limit)

    def limit(self) -> None:
        """Have it end after a while."""
        self.reactor.call_later(MAX_AGE, self.lower)

    def lower(self) -> None:
        """Let Python's own threshold hold again, unless the app has set one meanwhile."""
        if self.raised:
            self.raised = False
            if gc.get_threshold()[0] == self.threshold:
                gc.set_threshold(*USUAL_THRESHOLD)

    def unwatch(self) -> None:
        """Leave it to Python how often; also in a fork, whose reactor never turns."""
        if self.on_collection in getattr(gc, "callbacks", ()):  # PyPy has none
            gc.callbacks.remove(self.on_collection)
        self.lower()

    def restore(self) -> None:
        """Leave the collector as it was found."""
        if self.calmed:
            self.calmed = False
            self.unwatch()
            if self.freeze:
                gc.unfreeze()
