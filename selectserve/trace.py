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
    from typing import Callable, TextIO

MOMENTS = {
    "accept": "a client connected; the transport begins its life",
    "secure": "the TLS handshake is complete",
    "ready": "the selector says that the descriptor can be read or written",
    "read": "bytes were received",
    "eof": "the client will send nothing more",
    "event": "the parser made an event of the bytes",
    "task": "a coroutine begins",
    "step": "a coroutine ran until it parked or ended",
    "park": "a coroutine waits; the trap says for what",
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
COLOURS = {"read": 36, "flush": 36, "event": 33, "receive": 32, "send": 32, "step": 35, "close": 31}


class Tracer:
    """Print one line a moment: seconds, connection, moment, details; columns line up.

    ``clock`` is the reactor's; ``form`` is "text" or "json". Called as
    ``trace(moment, subject, *details)``; the subject's ``number`` tells the connection.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        stream: TextIO | None = None,
        form: str = "text",
        colour: bool = False,
    ) -> None:
        self.clock = clock
        self.stream = sys.stderr if stream is None else stream
        self.form = form
        self.colour = colour
        self.start = clock()

    def __call__(self, moment: str, subject: object, *details: object) -> None:
        at = self.clock() - self.start
        number = getattr(subject, "number", 0)
        text = " ".join(map(str, details))
        if self.form == "json":
            line = json.dumps({"at": round(at, 6), "connection": number, moment: text})
        else:
            word = f"{moment:<8}"
            if self.colour and moment in COLOURS:
                word = f"\x1b[{COLOURS[moment]}m{word}\x1b[0m"
            who = f"#{number}" if number else "-"
            line = f"{at:10.6f}  {who:>5}  {word} {text}"
        self.stream.write(line + "\n")
