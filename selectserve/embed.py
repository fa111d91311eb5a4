"""embed: a server inside another program: on a thread of its own, or turned by hand.

    with selectserve.serving(app) as server:      # its own thread, a free port
        urlopen(server.url)

    server = selectserve.by_hand(app)             # no thread: the program's own loop turns it
    while server.tick(0.1): ...

The host owns the process: no signal handler is installed, nothing exits, nothing is logged but
warnings unless ``log_level`` is given. What goes wrong before it serves is raised where it was
asked for; afterwards it is logged. Any number of servers may live side by side.
"""

from __future__ import annotations

import os
from contextvars import copy_context

from .aio import AsyncioStepper
from .config import Config
from .eager import make_reactor
from .errors import ConfigError
from .logs import error_logger, load_log_config, set_up_logging
from .server import Server
from .sources import load_env_file
from .stray import leave_server, watch_forks
from .systemd import Notifier
from .task import NativeStepper, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

LAST_WAIT = 5.0  # seconds for the last steps of a server that was told to hurry


class HostedServer(Server):
    """A server that tells its host, not the process, how it is; ``on_serving()`` is called once."""

    def __init__(self, config: Config, on_serving: Callable[[], object] = int) -> None:
        reactor = make_reactor(config.busy_poll)
        try:
            super().__init__(config, reactor)
        except BaseException as exc:
            reactor.close()
            if isinstance(exc, SystemExit):
                reason = f"the app {config.app!r} has called exit({exc.code!r}) while it was loaded"
                raise ConfigError(reason) from exc
            raise
        self.on_serving = on_serving
        self.failure: BaseException | None = None  # why it does not serve
        self.notifier = Notifier({}, self.reactor)  # a service manager knows the host only

    @property
    def url(self) -> str:
        """The first of the addresses that it serves, as in ``http://127.0.0.1:54321``."""
        return self.urls[0]

    @property
    def port(self) -> int:
        """The port of that, 0 for a unix socket."""
        name = self.listeners[0].sock.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def announce(self) -> None:
        """Tell the host."""
        super().announce()
        self.on_serving()

    def report_config(self, exc: ConfigError) -> None:
        """Keep what is wrong for the host."""
        self.failure = exc

    def report_lifespan(self, phase: str, in_time: bool) -> None:
        """Keep why there was no startup for the host; a failed shutdown is logged."""
        if phase != "startup":
            super().report_lifespan(phase, in_time)
            return
        cause = self.lifespan.failure
        reason = "was given up" if not in_time else f"failed: {cause or 'the app gave no reason'}"
        self.failure = ConfigError(f"lifespan startup {reason}", 3)
        if isinstance(cause, BaseException):
            self.failure.__cause__ = cause

    def stop_once(self) -> None:
        """Stop serving, unless told to already."""
        if not self.stops:
            self.stop()

    def stop(self, _reason: object = None) -> None:
        """Stop serving; called again, skip the drain; never end the process."""
        if self.stops < 2:
            super().stop()


class Serving:
    """A server on a thread of its own, which serves from the moment it is made until ``close``."""

    def __init__(self, config: Config) -> None:
        try:
            import threading
        except ImportError:
            raise ConfigError("this Python has no threads: use selectserve.by_hand") from None
        self.config = config
        self.server: HostedServer | None = None
        self.error: BaseException | None = None
        self.url = ""
        self.urls: list[str] = []
        self.port = 0
        self.decided = threading.Event()
        self.joining = threading.Lock()  # PyPy's Thread.join fails when two threads are in it
        self.thread = threading.Thread(target=self.run, name="selectserve", daemon=True)
        self.thread.start()
        self.decided.wait()
        if not self.urls:
            self.thread.join()
            error, self.error = self.error, None
            raise error or ConfigError("the server has ended before it served", 3)

    def __repr__(self) -> str:
        return f"<Serving {', '.join(self.urls)}{'' if self.thread.is_alive() else ' (closed)'}>"

    def run(self) -> None:
        """Live and die on the thread."""
        try:
            server = self.server = HostedServer(self.config, self.on_serving)
            server.run()
            self.error = server.failure
        except BaseException as exc:
            self.error = exc
            if self.urls:
                error_logger.critical("the server has ended", exc_info=exc)
        finally:
            self.decided.set()

    def on_serving(self) -> None:
        """Let the host go on."""
        if self.server is not None:
            self.urls = list(self.server.urls)
            self.url, self.port = self.server.url, self.server.port
        self.decided.set()

    def close(self, deadline: float | None = None) -> bool:
        """Drain for ``deadline`` seconds at most (default: what the options say), and end.

        From any thread, any number of times. False when the app does not let its thread go.
        """
        import threading

        server = self.server
        if server is None or not self.thread.is_alive():
            return True
        if not server.stops:
            server.reactor.call_from_thread(server.stop_once)
        if self.thread is threading.current_thread():  # the app itself: it cannot wait for itself
            return False
        config = self.config
        if deadline is None:
            deadline = config.timeout_graceful_shutdown + config.timeout_lifespan + LAST_WAIT
        with self.joining:
            self.thread.join(deadline)
            if self.thread.is_alive():
                server.reactor.call_from_thread(server.stop)
                self.thread.join(LAST_WAIT)
            return not self.thread.is_alive()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class HandTurned(HostedServer):
    """A server that serves while its host calls ``tick``, on the host's own thread."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ended = False
        self.forget_forks = watch_forks(self.leave)
        begin_by_hand(self)
        while not self.urls and self.tick(None):
            pass  # the lifespan's startup, before which there is nothing to turn for
        if not self.urls:
            raise self.failure or ConfigError("the server has ended before it served", 3)

    def tick(self, patience: float | None = 0.0) -> bool:
        """One turn, which waits up to ``patience`` seconds, None: as long as need be.

        Returns whether there is a next one; False once the server has ended.
        """
        if self.ended:
            return False
        stepper = self.stepper
        if isinstance(stepper, AsyncioStepper):
            stepper.loop.enter()
        try:
            self.reactor.tick(patience)
        except Exception as exc:
            self.on_fault(exc)
        finally:
            if isinstance(stepper, AsyncioStepper):
                stepper.loop.leave()
        if self.ended:
            if isinstance(stepper, AsyncioStepper):
                stepper.close()
            self.forget_forks()
            super().close()
        return not self.ended

    def fileno(self) -> int:
        """The descriptor that can be read when a turn has something to do, for a loop to watch.

        Timers do not show there: the loop may wait for ``patience()`` seconds.
        """
        number: int = getattr(self.reactor.selector, "fileno")()  # noqa: B009
        return number

    def patience(self) -> float | None:
        """Tell in how many seconds the next turn is due at the latest; None: nothing is due."""
        return self.reactor.patience()

    def leave(self) -> None:
        """In a process that was forked: there it has ended."""
        leave_server(self)
        self.ended = True

    def on_end(self, exc: BaseException | None) -> None:
        """Main has ended."""
        self.ended = True
        self.failure = self.failure or exc

    def close(self) -> None:
        """Drain and end; takes as many turns as that needs."""
        self.stop_once()
        while self.tick(None):
            pass

    def __enter__(self) -> HandTurned:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def begin_by_hand(server: HandTurned) -> None:
    """Queue the first step of ``server.main``."""
    stepper = server.stepper
    main = server.main()
    if isinstance(stepper, AsyncioStepper):
        root = stepper.loop.create_task(stepper.run_and_tidy(main))
        stepper.loop.root = root
        root.add_done_callback(
            lambda task: server.on_end(None if task.cancelled() else task.exception())
        )
    elif isinstance(stepper, NativeStepper):
        task = Task(stepper, main, server.on_end, copy_context())
        server.reactor.call_soon(task.step)
    else:
        main.close()
        raise ConfigError(f"--loop {stepper.name}: cannot be turned by hand")


def hosted_config(app: Any, options: dict[str, Any]) -> Config:
    """Make the options of a server that is a guest: a free port, and the host's logging."""
    if not {"port", "uds", "fd", "bind"} & set(options):
        options["port"] = 0
    options.setdefault("access_log", "log_level" in options)
    options.setdefault("gc_freeze", False)  # the collector is the host's
    options.setdefault("gc_threshold", 0)
    options.setdefault("busy_poll", 0)  # so are the processors
    config = Config(app, **options)
    if config.workers > 1 or config.reload:
        raise ConfigError("a server inside a program is one server: no workers, no reload", 2)
    if config.env_file:
        load_env_file(config.env_file, os.environ)
    if config.log_config:
        load_log_config(config.log_config)
    if "log_level" in options:
        set_up_logging(config.log_level, config.use_colors, config.access_log_format)
    return config


def serving(app: Any = None, **options: Any) -> Serving:
    """Serve ``app`` on a thread; return when it does. Options as for ``run``; port 0 by default.

    Raises ConfigError, or what the app raises on import, when that cannot be done.
    """
    return Serving(hosted_config(app, options))


def by_hand(app: Any = None, **options: Any) -> HandTurned:
    """Serve ``app`` without a thread: whenever ``tick`` is called on what is returned.

    Raises as ``serving`` does, and ConfigError for --loop trio, which turns by itself.
    """
    return HandTurned(hosted_config(app, options))
