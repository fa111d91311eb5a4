"""How apps under test tell the test something: by lines on stderr, which ``Server`` reads."""

from __future__ import annotations

import sys


def say(*words: object) -> None:
    """Write a line in one piece: other processes, threads or the watchdog may write there, too."""
    sys.stderr.write(" ".join(map(str, words)) + "\n")
    sys.stderr.flush()
