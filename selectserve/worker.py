"""worker: a server that has a supervisor, and the channel between the two.

A worker is a Server whose sockets were opened for it. Over a Channel it says how it is, and hears
what to do; neither side ever waits for the other:

    ready URLS | beat | replace REASON | files LIST  ->  the supervisor
    the worker  <-  retire (others go on accepting) | stop | hurry | reopen (the log files)

When the channel ends, the supervisor is gone, and the worker drains and ends too. What it was
doing last stands on its Slate, a page of memory that outlives it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from .logs import error_logger, mark_lines, reopen_logs
from .reactor import Reactor
from .server import Server, prepare
from .signals import REOPEN_SIGNALS
from .systemd import forget_manager
from .transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable

    from .asgi import Receive, Scope, Send
    from .config import Config
    from .service import StepApp

SLATE_SIZE = 512  # bytes; longer paths are cut
BEAT_INTERVAL = 2.0  # seconds between two heartbeats, at most
LAG_TO_TELL = 1.0  # seconds without a turn that are worth a line


class Channel:
    """Lines both ways between a supervisor and one of its processes.

    ``on_line(line)`` is called for each; ``on_end()`` once, when the other side is gone.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_line: Callable[[str], object],
        on_end: Callable[[], object],
    ) -> None:
        self.on_line = on_line
        self.on_end = on_end
        self.rest = b""
        sock.setblocking(False)
        self.transport = Transport(reactor, sock)
        self.transport.trace = None  # no news: it is no client
        self.transport.start(self)

    @property
    def is_open(self) -> bool:
        """Tell whether the other side is still there."""
        return self.transport.state == "open"

    def send(self, line: str) -> None:
        """Say ``line``; dropped when nobody is there any more."""
        self.transport.write([line.encode() + b"\n"])

    def close(self) -> None:
        """Hang up."""
        self.on_end = int
        self.transport.close()

    # -- what the transport calls --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take lines apart."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.on_line(line.decode())

    def eof_received(self) -> None:
        """The other side has hung up, or died."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The same, noticed."""
        self.on_end()

    def pause_writing(self) -> None:
        """Lines are few."""

    def resume_writing(self) -> None:
        """Lines are few."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a channel."""
    return socket.socketpair()


class Slate:
    """A page of memory in which a worker writes what it begins, and the supervisor reads it.

    Memory that a fork shares by itself, else of the file ``fd``; nothing where Python has no mmap.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        self.page: Any = None
        self.born = os.fstat(fd).st_mtime_ns if fd >= 0 else 0  # by the clock that files have
        try:
            import mmap
        except ImportError:
            return
        self.page = mmap.mmap(fd, SLATE_SIZE)

    def read(self) -> str:
        """Return what was begun last, "" if nothing was."""
        if self.page is None:
            return ""
        line: bytes = self.page[:].partition(b"\n")[0]
        return line.strip(b"\0").decode("utf-8", "replace")

    def close(self) -> None:
        """Forget it."""
        if self.page is not None:
            self.page.close()
        if self.fd >= 0:
            os.close(self.fd)


def note_requests(app: StepApp, slate: Slate) -> StepApp:
    """Return ``app``, with each request noted on the slate first: 0.4 µs (CPython 3.11)."""
    page = slate.page
    if page is None:
        return app

    def note_and_call(scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] != "lifespan":
            text = f"{scope.get('method', 'WEBSOCKET')} {scope['path']}\n"
            line = text.encode("utf-8", "replace")[:SLATE_SIZE]
            page[: len(line)] = line
        return app(scope, receive, send)

    return note_and_call


class Worker(Server):
    """Serve on ``sockets``, and keep in touch with the supervisor at the other end of ``link``.

    With ``watch`` the supervisor is also told which files the app consists of.
    """

    def __init__(
        self,
        config: Config,
        sockets: Sequence[socket.socket],
        link: socket.socket,
        slate: Slate,
        watch: bool = False,
    ) -> None:
        mark_lines(f"[{os.getpid()}] ")
        super().__init__(config, sockets=sockets)
        self.service.on_limit = self.on_limit
        self.service.app = note_requests(self.service.app, slate)
        self.channel = Channel(self.reactor, link, self.on_command, self.on_orphaned)
        self.watch = watch
        self.modules = 0  # how many were loaded when we told
        patience = health_patience(config)
        self.interval = min(BEAT_INTERVAL, patience / 6) if patience else BEAT_INTERVAL
        self.patience = patience
        self.dump_after = patience / 2
        self.dumps = False  # a dump is due, unless the next beat comes before
        self.parent = os.getppid()
        if patience:
            self.watchdog.on_held = self.end_if_orphaned
            self.watchdog.limit = min(self.watchdog.limit or patience, patience)
        self.next_beat = 0.0

    def announce(self) -> None:
        """Tell the supervisor that we serve, and from now on that we turn."""
        error_logger.info("worker serves (%s)", self.stepper.name)
        self.channel.send(f"ready {', '.join(self.urls)}")
        self.next_beat = self.reactor.clock()
        self.beat()

    def beat(self) -> None:
        """Say that the reactor turns; tell if it has not for a while.

        Whatever keeps it from turning is shown by faulthandler, whose thread needs no turn.
        """
        now = self.reactor.clock()
        if now - self.next_beat > LAG_TO_TELL:
            error_logger.warning("nothing went on for %.1f s", now - self.next_beat)
        self.channel.send("beat")
        if self.watch and len(sys.modules) != self.modules:
            self.modules = len(sys.modules)
            self.channel.send(f"files {json.dumps(loaded_files())}")
        self.next_beat = now + self.interval
        self.reactor.call_at(self.next_beat, self.beat)
        if self.dump_after:
            self.dumps = dump_stack_later(self.dump_after)

    def on_command(self, line: str) -> None:
        """Do what the supervisor says; the same twice is once."""
        self.channel.send("beat")
        if line == "reopen":
            reopen_logs()
        elif not self.stops:
            self.retiring = line == "retire"
            self.stop()
        elif line == "stop" and self.retiring:  # the others do not go on after all
            self.retiring = False
            self.close_idle(gently=False)
        if line == "hurry" and self.stops < 2:
            self.stop()

    def close_listeners(self, others_go_on: bool) -> None:
        """Accept nobody any more; who waits, is meant for the code that is to come."""
        super().close_listeners(others_go_on or self.watch)

    def on_limit(self) -> None:
        """Enough requests were served: a successor is to come first."""
        if self.channel.is_open:
            self.channel.send(f"replace it has served {self.service.requests} requests")
        else:
            self.stop()

    def on_orphaned(self) -> None:
        """The supervisor is gone; nobody would ever stop us."""
        if not self.stops:
            error_logger.warning("the supervisor is gone")
            self.stop()

    def end_if_orphaned(self, held: float) -> None:
        """Blocked for so long, a worker is killed; by itself, when nobody else is left to do it.

        On the thread of the watchdog, for ours is the blocked one.
        """
        if held > self.patience and os.getppid() != self.parent:
            os._exit(1)

    def on_signal(self, number: int) -> None:
        """Leave signals that go to the whole group (Ctrl-C) to the supervisor, who tells us."""
        if not self.channel.is_open:
            super().on_signal(number)
            return
        name = signal.Signals(number).name
        if name in REOPEN_SIGNALS:
            reopen_logs()
        elif name == "SIGTERM" and not self.stops:
            self.stop()

    def close(self) -> None:
        """Release everything that is left."""
        if self.dumps:  # else PyPy 7.3.11 waits for ever
            dump_stack_later(0)
        self.channel.close()
        super().close()


def health_patience(config: Config) -> float:
    """Return how long a worker may be blocked, 0 for ever: as for somebody in a debugger."""
    debugged = config.reload and "timeout_worker_healthcheck" not in config.values
    return 0.0 if debugged else config.timeout_worker_healthcheck


def dump_stack_later(seconds: float) -> bool:
    """Show all threads' stacks on stderr unless called again in time; 0: never. Tell if so."""
    try:
        import faulthandler

        if seconds:
            faulthandler.dump_traceback_later(seconds)
        else:
            faulthandler.cancel_dump_traceback_later()
    except (ImportError, OSError, ValueError, RuntimeError, AttributeError):
        return False  # no such module, or stderr is no file
    return seconds > 0


def loaded_files() -> list[str]:
    """Return the files of all modules, but for Python's own, ours and what was installed."""
    library = os.path.dirname(getattr(os, "__file__", "")) + os.sep
    files = {
        getattr(module, "__file__", None) or ""
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] != "selectserve"
    }
    return sorted(
        os.path.abspath(file)
        for file in files
        if file and not file.startswith(library) and f"-packages{os.sep}" not in file
    )


def run_worker(
    config: Config,
    sockets: Sequence[socket.socket],
    link: socket.socket,
    slate: Slate,
    watch: bool = False,
) -> int:
    """Be a worker; return the exit code."""
    forget_manager(os.environ)  # it knows the supervisor only; the app is not to speak for that
    made = prepare(config, lambda: Worker(config, sockets, link, slate, watch))
    if not isinstance(made, int):
        return made.run()
    if watch:  # what there was of the app until it failed
        link.settimeout(BEAT_INTERVAL)
        try:
            link.sendall(f"files {json.dumps(loaded_files())}\n".encode())
        except OSError:
            pass  # nobody is there to be told
    return made
