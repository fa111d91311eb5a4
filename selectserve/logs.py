"""logs: logging set up, and the access line.

Loggers are ``selectserve.error`` for what the server says and ``selectserve.access`` for one line
a request, written when its last byte has left or the client has. While the access logger is as
we set it up, lines skip the LogRecord (8 µs each) and are written once a turn; as soon as anybody
adds a handler, a filter or a level, they go through logging like everything else.
"""

from __future__ import annotations

import logging
import sys

from .errors import Cancelled, ClientDisconnected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, TextIO

    from .reactor import Flushable

    TextHandler = logging.StreamHandler[TextIO]
else:
    TextHandler = logging.StreamHandler  # before 3.11 it takes no type arguments

LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": 5,
}
MAX_COMPLAINTS = 10  # lines a second about what clients do wrong
LEVEL_COLOURS = {"DEBUG": 36, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 91}
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}
CONTROL[ord("\\")] = "\\\\"

error_logger = logging.getLogger("selectserve.error")
access_logger = logging.getLogger("selectserve.access")


class LogHandler(TextHandler):
    """Write to a standard stream; a reader that is gone, or a full disk, harms no request."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line: there is nowhere left to complain."""


class LevelFormatter(logging.Formatter):
    """``INFO:     message``, as uvicorn writes it, coloured on a terminal."""

    def __init__(self, colour: bool) -> None:
        super().__init__("%(message)s")
        self.colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Put the level in front."""
        return level_prefix(record.levelname, self.colour) + record.getMessage()


def level_prefix(level: str, colour: bool) -> str:
    """Return the level as the first column of a line."""
    padding = " " * max(1, 9 - len(level))
    if colour:
        return f"\x1b[{LEVEL_COLOURS.get(level, 0)}m{level}\x1b[0m:{padding}"
    return f"{level}:{padding}"


def set_up_logging(level: str, use_colors: bool | None) -> None:
    """Give our loggers a handler each, unless the host program configured them already."""
    for logger, stream in ((error_logger, sys.stderr), (access_logger, sys.stdout)):
        logger.setLevel(LEVELS[level])
        if not logger.hasHandlers() and stream is not None:
            handler = LogHandler(stream)
            handler.setFormatter(LevelFormatter(wants_colour(stream, use_colors)))
            logger.addHandler(handler)
            logger.propagate = False


def wants_colour(stream: TextIO, use_colors: bool | None) -> bool:
    """Colour only on a terminal, unless told."""
    if use_colors is not None:
        return use_colors
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def printable(text: str) -> str:
    """Escape control characters, so that one request is one line and cannot paint a terminal."""
    return text.translate(CONTROL) if not text.isprintable() or "\\" in text else text


class AccessLog:
    """Write access lines; gathered in a turn and written by ``flush`` at its end."""

    def __init__(self, unflushed: list[Flushable]) -> None:
        self.unflushed = unflushed  # of the reactor
        self.lines: list[str] = []
        self.handler = access_logger.handlers[0] if access_logger.handlers else None
        formatter = None if self.handler is None else self.handler.formatter
        colour = isinstance(formatter, LevelFormatter) and formatter.colour
        self.prefix = level_prefix("INFO", colour)

    def write(self, line: str) -> None:
        """Log one line."""
        handler = self.handler
        if (
            type(handler) is LogHandler
            and access_logger.handlers == [handler]
            and not access_logger.filters
            and not handler.filters
            and access_logger.level <= logging.INFO
            and access_logger.level
            and not access_logger.disabled
        ):
            if not self.lines:
                self.unflushed.append(self)
            self.lines.append(f"{self.prefix}{line}\n")
        else:
            access_logger.info("%s", line)

    def flush(self) -> None:
        """Write what was gathered."""
        lines, self.lines = self.lines, []
        handler = self.handler
        if type(handler) is LogHandler and lines:
            try:
                handler.stream.write("".join(lines))
                handler.stream.flush()
            except (OSError, ValueError):
                pass  # the reader is gone: no reason to stop serving


class Complaints:
    """Log what clients do wrong: one line each, and a flood of them as a number."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.window_ends = 0.0
        self.left = 0
        self.suppressed = 0

    def log(self, level: int, text: str) -> None:
        """Log ``text`` unless too much was said in this second already."""
        if not error_logger.isEnabledFor(level):
            return
        now = self.clock()
        if now >= self.window_ends:
            if self.suppressed:
                error_logger.warning("%d more complaints about clients", self.suppressed)
            self.window_ends, self.left, self.suppressed = now + 1.0, MAX_COMPLAINTS, 0
        if self.left:
            self.left -= 1
            error_logger.log(level, "%s", printable(text))
        else:
            self.suppressed += 1


def is_disconnect(exc: BaseException) -> bool:
    """Tell whether ``exc`` only says, at whatever remove, that the client has left."""
    cause: BaseException | None = exc
    for _ in range(10):
        if cause is None or isinstance(cause, ClientDisconnected):
            return cause is not None
        cause = cause.__cause__ or cause.__context__
    return False


def log_app_error(exc: BaseException, what: str) -> None:
    """Log what the app raised, once, with its own traceback; a disconnect is no error."""
    if is_disconnect(exc) or isinstance(exc, Cancelled):
        return
    traceback = exc.__traceback__
    if traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next  # the first frame is the stepper's
    error_logger.error("the app failed: %s", printable(what), exc_info=(type(exc), exc, traceback))
