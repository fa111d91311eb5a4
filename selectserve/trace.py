"""trace: the vocabulary of moments, and the printer that tells the life of a connection with it.

Whoever lives through a moment says it in one line, ``if self.trace: self.trace("read", self, …)``,
which costs a test of one attribute when nobody listens. The words are public: the console, the
tests, the docs and the inspector use these and no others.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Protocol

    class Tells(Protocol):
        """What is told each moment; false while it does not want to hear of any."""

        def __call__(self, moment: str, subject: object, *details: object) -> None: ...
        def __bool__(self) -> bool: ...

    class Writes(Protocol):
        """A stream, or something else that takes lines."""

        def write(self, text: str, /) -> object: ...


MOMENTS = {
    "accept": "a client connected; the transport begins its life",
    "secure": "the TLS handshake is complete",
    "ready": "the selector says that the descriptor can be read or written",
    "read": "bytes were received",
    "eof": "the client will send nothing more",
    "event": "the parser made an event of the bytes",
    "task": "a coroutine begins: the app is called",
    "step": "a coroutine goes on where it was parked",
    "park": "a coroutine cannot go on; the trap says what it waits for",
    "done": "a coroutine has ended",
    "receive": "a message went to the app",
    "send": "a message came from the app",
    "debug": "what the app tells about its answer (http.response.debug)",
    "write": "bytes were put into the write buffer",
    "flush": "bytes left; the kernel took them",
    "pause": "a buffer is above its high watermark: whoever fills it must wait",
    "resume": "the buffer is below its low watermark again",
    "timer": "a deadline was reached",
    "upgrade": "the connection goes on as a WebSocket",
    "close": "the transport ended its life",
}
MOMENT_COLOURS = {
    **dict.fromkeys(("read", "eof", "write", "flush"), 36),  # bytes
    **dict.fromkeys(("event", "upgrade", "secure"), 33),  # what they mean
    **dict.fromkeys(("task", "step", "park", "done"), 35),  # coroutines
    **dict.fromkeys(("receive", "send"), 32),  # messages
    **dict.fromkeys(("pause", "resume", "timer", "close"), 31),  # limits and ends
}


class Tracer:
    """Print one line a moment: seconds, connection, moment, details; columns line up.

    ``clock`` is the reactor's; seconds count from ``begin``. ``form`` is "text" or "json". Called
    as ``trace(moment, subject, *details)``; the subject's ``number`` tells the connection.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        stream: Writes | None = None,
        form: str = "text",
        colour: bool = False,
    ) -> None:
        self.clock = clock
        self.stream: Writes = sys.stderr if stream is None else stream
        self.form = form
        self.colour = colour
        self.start = clock()

    def __bool__(self) -> bool:
        return True

    def begin(self) -> None:
        """Count the seconds from now."""
        self.start = self.clock()

    def __call__(self, moment: str, subject: object, *details: object) -> None:
        at = self.clock() - self.start
        number = getattr(subject, "number", 0)
        text = tell_details(details)
        if self.form == "json":
            line = json.dumps(
                {"at": round(at, 6), "connection": number, "moment": moment, "details": text}
            )
        else:
            word = f"{moment:<8}"
            if self.colour and moment in MOMENT_COLOURS:
                word = f"\x1b[{MOMENT_COLOURS[moment]}m{word}\x1b[0m"
            who = f"#{number}" if number else "-"
            line = f"{at:10.6f}  {who:>5}  {word} {text}".rstrip()
        self.stream.write(line + "\n")


def tell_details(details: tuple[object, ...]) -> str:
    """Return the details of a moment as one line, in which nothing can paint a terminal."""
    text = " ".join(map(str, details))
    return text if text.isprintable() else text.encode("unicode_escape").decode()
