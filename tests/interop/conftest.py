"""Servers for the interoperability tests: ours, and uvicorn to compare with."""

from __future__ import annotations

import sys

import pytest

from ..support import Server

# The last uvicorn for Python 3.9 answers wrongly with its newer WebSocket implementation.
WEBSOCKETS = "websockets-sansio" if sys.version_info >= (3, 10) else "websockets"
UVICORN = [sys.executable, "-m", "uvicorn", "--ws", WEBSOCKETS]


class Pair:
    """The same app under selectserve and under uvicorn, both started once."""

    def __init__(self, app: str, *arguments: str) -> None:
        self.ours = Server(app, *arguments)
        try:
            self.theirs = Server(app, *arguments, program=UVICORN)
        except BaseException:
            self.ours.kill()
            raise

    def kill(self) -> None:
        """End both."""
        self.ours.kill()
        self.theirs.kill()


@pytest.fixture(scope="session")
def pairs():
    """Return ``pair(app)``: the two servers of an app, started when first asked for."""
    made = {}

    def pair(app: str, *arguments: str) -> Pair:
        if app not in made:
            for other in made.values():  # one app at a time is enough
                other.kill()
            made.clear()
            made[app] = Pair(app, *arguments)
        return made[app]

    yield pair
    for other in made.values():
        other.kill()
