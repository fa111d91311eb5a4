"""logs: logging set up, and the access line.

Loggers are ``selectserve.error`` for what the server says and ``selectserve.access`` for one line
a request, written when its last byte has left or the client has. While the access logger is as
we set it up, lines skip the LogRecord (8 µs each) and are written once a turn; as soon as anybody
adds a handler, a filter or a level, they go through logging like everything else.
"""

from __future__ import annotations

import os
import stat
import sys
from importlib import import_module

from .errors import Cancelled, ClientDisconnected, ConfigError, group_parts
from .reactor import PIPE_BUF, can_write
from .threadless import lend_locks

try:
    import logging
except ImportError:  # of threading, of which it wants the locks only
    lend_locks()
    import logging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, TextIO, Union

    from .access import AccessFormat
    from .reactor import Reactor, Timer

    ExceptionInfo = tuple[type[BaseException], BaseException, Union[TracebackType, None]]
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
MAX_KEPT = 262144  # bytes of log lines that wait for a reader
RETRY_DELAY = 0.25  # seconds until a full stream is tried again
LAST_LINES = 2.0  # seconds for a slow reader to take the last lines, at the end
MAX_COMPLAINTS = 10  # lines a second about what clients do wrong
LEVEL_COLOURS = {"DEBUG": 36, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 91}
# What nobody raises to say that a client has left: raised while that was handled, it is a bug.
BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}
CONTROL[ord("\\")] = "\\\\"

error_logger = logging.getLogger("selectserve.error")
access_logger = logging.getLogger("selectserve.access")


class Outlet:
    """A standard stream that nobody waits for: what it does not take now is kept, or dropped.

    A pipe whose reader sleeps, or a terminal that is held with Ctrl-S, would else stop the whole
    server in a write. A reader that is gone, or a full disk, harms no request either.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.kept = b""
        self.dropped = 0
        self.polled = False  # asked before each write whether it would wait
        self.shared = False  # a pipe, in which other processes' lines come between two writes
        try:
            self.fd = stream.fileno()
            mode = os.fstat(self.fd).st_mode
            waits, self.shared = not stat.S_ISREG(mode), stat.S_ISFIFO(mode)
        except (OSError, ValueError, AttributeError):  # no file: a StringIO or an IDE's
            self.fd = -1
            return
        if waits:
            try:
                # An open file of our own: O_NONBLOCK on the shared one would hit the shell, too.
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
                self.fd = os.open(f"/proc/self/fd/{self.fd}", flags)
            except (OSError, AttributeError):  # not Linux, or a socket, or another user's
                self.polled = True

    def write(self, text: str) -> None:
        """Write whole lines, or keep them for later."""
        if self.fd < 0:
            self.stream.write(text)
            self.stream.flush()
            return
        data = text.encode(self.stream.encoding or "utf-8", "backslashreplace")
        if len(self.kept) > MAX_KEPT:
            self.dropped += data.count(b"\n")
        else:
            self.kept += data
        self.drain()

    def drain(self) -> None:
        """Write what is kept, as far as that goes without waiting."""
        while self.kept:
            size = len(self.kept)
            if self.polled and not can_write(self.fd):
                return
            if self.polled or self.shared:  # a pipe takes so many bytes, all or nothing (POSIX)
                size = (self.kept.rfind(b"\n", 0, PIPE_BUF) + 1) or PIPE_BUF
            try:
                self.stream.flush()  # what the app has printed before
                done = os.write(self.fd, self.kept[:size])
            except BlockingIOError:
                return
            except (OSError, ValueError):
                self.kept = b""  # the reader is gone: no reason to stop serving
                return
            self.kept = self.kept[done:]
            if self.dropped and not self.kept:
                self.kept = b"%d log lines were lost: nobody read them\n" % self.dropped
                self.dropped = 0


class LogHandler(TextHandler):
    """Write to a standard stream, through an Outlet."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.outlet = Outlet(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self.outlet.write(self.format(record) + "\n")
        except Exception:  # of a format that does not fit its arguments
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line: there is nowhere left to complain."""


class LevelFormatter(logging.Formatter):
    """``INFO:     message``, as uvicorn writes it, coloured on a terminal."""

    def __init__(self, colour: bool = False) -> None:
        super().__init__("%(message)s")
        self.colour = colour
        self.mark = ""  # in front of each message: who among several processes says so

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Put the level in front."""
        return level_prefix(record.levelname, self.colour) + self.mark + record.getMessage()


def level_prefix(level: str, colour: bool) -> str:
    """Return the level as the first column of a line."""
    padding = " " * max(1, 9 - len(level))
    if colour:
        return f"\x1b[{LEVEL_COLOURS.get(level, 0)}m{level}\x1b[0m:{padding}"
    return f"{level}:{padding}"


def set_up_logging(level: str | None, use_colors: bool | None, access_format: str = "") -> None:
    """Give our loggers a handler each, unless the host program configured them already.

    ``level`` None keeps the levels that were set; with an ``access_format`` the line is all of it.
    """
    for logger, stream in ((error_logger, sys.stderr), (access_logger, sys.stdout)):
        if level is not None or not (logger.level or logging.getLogger("selectserve").level):
            logger.setLevel(LEVELS[level or "info"])
        if not logger.hasHandlers() and stream is not None:
            handler = LogHandler(stream)
            if logger is access_logger and access_format:
                handler.setFormatter(logging.Formatter("%(message)s"))
            else:
                handler.setFormatter(LevelFormatter(wants_colour(stream, use_colors)))
            logger.addHandler(handler)
            logger.propagate = False


def load_log_config(given: Any) -> None:
    """Configure logging from a .json, .yaml or .ini file, or what such a one says; ConfigError."""
    import json

    try:
        import logging.config
    except ImportError as exc:  # it wants threads, too
        raise ConfigError(f"--log-config: this Python cannot do that: {exc}") from None
    try:
        if isinstance(given, dict):
            logging.config.dictConfig(given)
        elif not isinstance(given, str):
            logging.config.fileConfig(given, disable_existing_loggers=False)
        elif given.endswith(".json"):
            with open(given, encoding="utf-8") as stream:
                logging.config.dictConfig(json.load(stream))
        elif given.endswith((".yaml", ".yml")):
            logging.config.dictConfig(read_yaml(given))
        else:
            with open(
                given, encoding="utf-8"
            ) as stream:  # fileConfig is silent about a missing one
                logging.config.fileConfig(stream, disable_existing_loggers=False)
    except ConfigError:
        raise
    except Exception as exc:  # whatever the formatters and handlers named there raise
        where = f" {given}" if isinstance(given, str) else ""
        cause = f" ({exc.__cause__})" if exc.__cause__ is not None else ""
        reason = " ".join(f"{exc or type(exc).__name__}{cause}".split())  # configparser's has lines
        raise ConfigError(f"--log-config{where}: {reason}") from None


def read_yaml(path: str) -> Any:
    """Read a YAML file, if PyYAML is there."""
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ConfigError(
            f"--log-config {path}: reading YAML needs the package PyYAML; or write it as JSON"
        ) from None
    with open(path, encoding="utf-8") as stream:
        return yaml.safe_load(stream)


def mark_lines(mark: str) -> None:
    """Put ``mark`` in front of the messages of our own error handler."""
    for handler in error_logger.handlers:
        if isinstance(handler, LogHandler) and isinstance(handler.formatter, LevelFormatter):
            handler.formatter.mark = mark
            handler.outlet.kept = b""  # in a fork: the parent will write it


def reopen_logs() -> None:
    """Open the log files of all handlers anew: somebody has moved the old ones away."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # a PlaceHolder has none
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                handler.acquire()
                try:
                    handler.stream.close()
                    handler.stream = handler._open()
                except OSError as exc:
                    error_logger.error("cannot open the log file again: %s", exc)
                finally:
                    handler.release()


def wants_colour(stream: TextIO, use_colors: bool | None) -> bool:
    """Colour only on a terminal, unless told."""
    if use_colors is not None:
        return use_colors
    try:
        return stream.isatty()
    except (ValueError, AttributeError):  # closed, or not there
        return False


def has_terminal() -> bool:
    """Tell whether the process was started by somebody at a terminal, who is still there."""
    try:
        return sys.stdin is not None and os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):
        return False


def printable(text: str) -> str:
    """Escape control characters, so that one request is one line and cannot paint a terminal."""
    return text.translate(CONTROL) if not text.isprintable() or "\\" in text else text


class AccessLog:
    """Write access lines; gathered in a turn and written by ``flush`` at its end.

    ``form`` makes the lines of exchanges; None: the cycles write their own.
    """

    def __init__(self, reactor: Reactor, form: AccessFormat | None = None) -> None:
        self.reactor = reactor
        self.form = form
        self.lines: list[str] = []
        self.retry: Timer | None = None
        self.handler = access_logger.handlers[0] if access_logger.handlers else None
        self.outlet = self.handler.outlet if type(self.handler) is LogHandler else None
        formatter = None if self.handler is None else self.handler.formatter
        colour = isinstance(formatter, LevelFormatter) and formatter.colour
        plain = isinstance(formatter, LevelFormatter)
        self.prefix = level_prefix("INFO", colour) if plain else ""

    def write(self, line: str) -> None:
        """Log one line; how, the first of a turn decides."""
        if self.lines:
            self.lines.append(line)
        elif self.is_direct():
            self.reactor.unflushed.insert(0, self)  # behind the answers, whose lines these are
            self.lines.append(line)
        else:
            access_logger.info("%s", line)

    def is_direct(self) -> bool:
        """Tell whether logging would only hand the line to our handler."""
        handler = self.handler
        return (
            handler is not None
            and self.outlet is not None
            and access_logger.handlers == [handler]
            and not access_logger.filters
            and not handler.filters
            and 0 < access_logger.level <= logging.INFO
            and not access_logger.disabled
            and access_logger.manager.disable < logging.INFO
        )

    def flush(self) -> None:
        """Write what was gathered."""
        lines, self.lines = self.lines, []
        outlet = self.outlet
        if outlet is not None and lines:
            try:
                outlet.write("".join([f"{self.prefix}{line}\n" for line in lines]))
            except (OSError, ValueError):
                pass  # closed by the host program
            if outlet.kept and self.retry is None:
                self.retry = self.reactor.call_later(RETRY_DELAY, self.try_again)

    def try_again(self) -> None:
        """Write what a full stream did not take."""
        self.retry = None
        if self.outlet is not None:
            self.outlet.drain()
            if self.outlet.kept:
                self.retry = self.reactor.call_later(RETRY_DELAY, self.try_again)

    def close(self) -> None:
        """Write what a slow reader has not taken yet, as long as it reads within seconds."""
        self.flush()
        outlet, clock = self.outlet, self.reactor.clock
        end = clock() + LAST_LINES
        while outlet is not None and outlet.kept and clock() < end:
            can_write(outlet.fd, end - clock())
            outlet.drain()


class Complaints:
    """Log what clients do wrong: one line each, and a flood of them as a number."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.window_ends = 0.0
        self.left = 0
        self.suppressed = 0
        self.timer: Timer | None = None  # of a window in which something was suppressed

    def log(self, level: int, text: str) -> None:
        """Log ``text`` unless too much was said in this second already."""
        if not error_logger.isEnabledFor(level):
            return
        now = self.reactor.clock()
        if now >= self.window_ends:
            self.tell_rest()
            self.window_ends, self.left = now + 1.0, MAX_COMPLAINTS
        if self.left:
            self.left -= 1
            error_logger.log(level, "%s", printable(text))
        else:
            self.suppressed += 1
            if self.timer is None:
                self.timer = self.reactor.call_at(self.window_ends, self.tell_rest)

    def tell_rest(self) -> None:
        """Tell how many were not told: at the end of the second, or of the server."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            error_logger.warning("%d more complaints about clients", self.suppressed)
            self.suppressed = 0


def is_disconnect(exc: BaseException | None, removes: int = 10) -> bool:
    """Tell whether ``exc`` only says, at whatever remove, that the client has left."""
    if exc is None or not removes or isinstance(exc, ClientDisconnected):
        return isinstance(exc, ClientDisconnected)
    parts = group_parts(exc)
    if parts:  # of a TaskGroup; it may be what its part was raised in
        return all(is_disconnect(part, removes - 1) for part in parts)
    if exc.__cause__ is None and type(exc).__module__ == "builtins" and isinstance(exc, BUGS):
        return False
    return is_disconnect(exc.__cause__ or exc.__context__, removes - 1)


def own_traceback(exc: BaseException) -> TracebackType | None:
    """Return the part of the traceback that is the user's: from the first frame that is not ours.

    Nor importlib's; nor those of asyncio and (PyPy) of contexts, which call the app on the way.
    """
    traceback = exc.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(("_contextvars", "asyncio", "importlib", "selectserve")):
            break
        traceback = traceback.tb_next
    return traceback


def own_info(exc: BaseException) -> ExceptionInfo:
    """Return what logging wants to know of ``exc``, with the user's part of the traceback."""
    return type(exc), exc, own_traceback(exc)


def log_app_error(exc: BaseException, what: str, hint: str) -> None:
    """Log what the app raised, once, with its own traceback; a disconnect is no error."""
    if is_disconnect(exc) or isinstance(exc, Cancelled):
        return
    error_logger.error(
        "the app failed: %s%s",
        printable(what),
        hint and f" ({hint})",
        exc_info=(type(exc), exc, own_traceback(exc) or exc.__traceback__),
    )
