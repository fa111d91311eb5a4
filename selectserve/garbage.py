"""garbage: have Python look for garbage in less, and if wanted less often, while the server serves.

CPython's collector looks at young objects after every few hundred that are made, and now and then
at all there are: the modules, routes and models of a framework, too, that live as long as the
process. So what is there when serving begins is frozen, no collection looks at it any more
(``gc.freeze``; nor does who asks ``gc.get_objects``): where requests run on threads that saves a
tenth of the time. To look less often saves more, but what only the collector frees, memory and
descriptors, is then held for longer: that is for who knows the app. A server in somebody else's
program leaves all this to its host, unless told otherwise.
"""

from __future__ import annotations

import gc

USUAL_THRESHOLD = gc.get_threshold() if hasattr(gc, "get_threshold") else ()  # PyPy has none


class Collector:
    """Python's garbage collector, ``calm`` while we serve; ``restore`` may be called always."""

    def __init__(self, freeze: bool, threshold: int) -> None:
        self.freeze = freeze
        self.threshold = min(threshold, 2**31 - 1)  # a C int; 0: Python's own
        self.calmed = False

    def calm(self) -> None:
        """Freeze what is there, and collect after so many new objects, as far as is wanted.

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
            gc.set_threshold(self.threshold or USUAL_THRESHOLD[0], *USUAL_THRESHOLD[1:])

    def restore(self) -> None:
        """Leave the collector as it was found."""
        if self.calmed:
            self.calmed = False
            if self.freeze:
                gc.unfreeze()
            gc.set_threshold(*USUAL_THRESHOLD)
