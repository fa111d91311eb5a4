"""One app for each framework, all with the same routes; see ``tests/interop/scenarios.py``."""

from __future__ import annotations

import sys

FILE = __file__
CHUNKS = [b"chunk %d\n" % number for number in range(5)]


def note(*words):
    """Tell the test something; in one write, since threads do it too."""
    sys.stderr.write(" ".join(["APP", *map(str, words)]) + "\n")
    sys.stderr.flush()
